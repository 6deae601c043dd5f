"""Turn channels and hyperparameters into arguments, environment and params.json."""

from tasks.stage import stage
from trainjob.job import TrainingJob
from trainjob.parameters import write_params
from trainjob.places import channel_places
from trainjob.plan import Program, program_of
from trainjob.values import counted
from trainjob.workspace import Workspace


def _summary(program: Program) -> str:
    return counted(len(program.argv) - 1, "argument")


@stage(_summary)
def inject_hyperparameters(job: TrainingJob, run_id: str) -> Program:
    """Write params.json into the workspace of the run and return what the ranks execute."""
    workspace = Workspace.of_run(run_id)
    places = channel_places(job, workspace)
    write_params(workspace.params_file, places, job.given_hyperparameters)
    return program_of(job, workspace)
