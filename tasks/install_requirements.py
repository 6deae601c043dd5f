"""Install what the code's requirements.txt asks for, in an environment that runs share."""

from tasks.stage import stage
from trainjob.environments.provide import Provided, provide_environment
from trainjob.job import TrainingJob
from trainjob.workspace import Workspace


@stage(str)
def install_requirements(job: TrainingJob, run_id: str) -> Provided:
    """Let the workspace of the run lead to the environment that the code of `job` asks for."""
    return provide_environment(job, Workspace.of_run(run_id))
