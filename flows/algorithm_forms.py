"""What a deployment of `flows.algorithm_deployment` takes: jobs of its one algorithm, by its name.

The form of another deployment takes any algorithm, all of it or a name. One that was made like such
a deployment, as by ``schedule --pool``, has its form.
"""

from typing import Any

from prefect.client.schemas.responses import DeploymentResponse

from trainjob.errors import TrainjobError
from trainjob.job import TrainingJob


def takes(deployment: DeploymentResponse, job: TrainingJob) -> bool:
    """Tell whether a deployment takes a job: of its algorithm, and with a value where it has one.

    A form has a type for each hyperparameter, and null, which removes a default, is of none.
    """
    only = _only_algorithm(deployment)
    return only is None or (only == job.algorithm.registered and not _removed(job))


def as_taken(
    deployment: DeploymentResponse, job: TrainingJob, data: dict[str, Any]
) -> dict[str, Any]:
    """Return what a deployment is given as a job.

    Args:
        deployment: What is to start the job.
        job: The job.
        data: Its keys and values; left unchanged.

    Raises:
        TrainjobError: If the deployment trains with another algorithm alone, or its form has a
            value for a hyperparameter that the job removes.
    """
    only = _only_algorithm(deployment)
    if only is None:
        return data
    if takes(deployment, job):
        return {**data, "algorithm": only}
    asked = f"asked for the deployment 'training-job/{deployment.name}' to train with"
    do = "give --pool with another one, such as cpu"
    if only == job.algorithm.registered:
        removed = ", ".join(f"hyperparameters.{name}: null" for name in _removed(job))
        raise TrainjobError(f"{asked} {removed}, found that its form takes no null; {do}")
    raise TrainjobError(
        f"{asked} {job.algorithm.registered or 'an algorithm that is not saved'}, found that it "
        f"trains with {only} alone; {do}"
    )


def _removed(job: TrainingJob) -> list[str]:
    """Return the hyperparameters whose default a job removes."""
    return [name for name, value in job.hyperparameters.items() if value is None]


def _only_algorithm(deployment: DeploymentResponse) -> str | None:
    """Return the saved algorithm that the form of a deployment is for; None: any."""
    models = (deployment.parameter_openapi_schema or {}).get("definitions", {})
    field = models.get("TrainingJob", {}).get("properties", {}).get("algorithm", {})
    names = field.get("enum")
    return str(names[0]) if names else None
