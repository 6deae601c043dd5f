"""What a deployment of `flows.algorithm_deployment` takes: jobs of its one algorithm, by its name.

The form of another deployment takes any algorithm, all of it or a name. One that was made like such
a deployment, as by ``schedule --pool``, has its form.
"""

from typing import Any

from prefect.client.schemas.responses import DeploymentResponse

from trainjob.errors import TrainjobError
from trainjob.job import TrainingJob


def takes(deployment: DeploymentResponse, job: TrainingJob) -> bool:
    """Tell whether a deployment takes jobs of the algorithm of a job."""
    return _only_algorithm(deployment) in (None, job.algorithm.registered)


def as_taken(
    deployment: DeploymentResponse, job: TrainingJob, data: dict[str, Any]
) -> dict[str, Any]:
    """Return what a deployment is given as a job.

    Args:
        deployment: What is to start the job.
        job: The job.
        data: Its keys and values; left unchanged.

    Raises:
        TrainjobError: If the deployment trains with another algorithm alone.
    """
    only = _only_algorithm(deployment)
    if only is None:
        return data
    if not takes(deployment, job):
        raise TrainjobError(
            f"asked for the deployment 'training-job/{deployment.name}' to train with "
            f"{job.algorithm.registered or 'an algorithm that is not saved'}, found that it trains "
            f"with {only} alone; give --pool with another one, such as cpu"
        )
    return {**data, "algorithm": only}


def _only_algorithm(deployment: DeploymentResponse) -> str | None:
    """Return the saved algorithm that the form of a deployment is for; None: any."""
    models = (deployment.parameter_openapi_schema or {}).get("definitions", {})
    field = models.get("TrainingJob", {}).get("properties", {}).get("algorithm", {})
    names = field.get("enum")
    return str(names[0]) if names else None
