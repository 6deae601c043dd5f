"""Leave a page about the run beside it in the Prefect UI."""

import re
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate

from trainjob.job import TrainingJob
from trainjob.report import RunReport, report_markdown


def artifact_key(job: str, kind: str = "job") -> str:
    """Return the key that the artifacts of a job have in common: letters, digits and dashes."""
    return f"{kind}-{re.sub('[^a-z0-9]+', '-', job.lower()).strip('-')}"


@task(
    name="report",
    task_run_name="report",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=1,
)
def report(result: RunReport, job: TrainingJob | None) -> None:
    """Write the report as a markdown artifact, on success and on failure.

    Args:
        result: What the run did.
        job: Its job; None if it could not be read.
    """
    write_report(result, job)


def write_report(result: RunReport, job: TrainingJob | None) -> None:
    """Write the report as a markdown artifact of its run, from whatever process."""
    artifact = ArtifactCreate(
        type="markdown",
        key=artifact_key(result.job),
        data=report_markdown(result, job),
        description=f"{result.job}: {result.state}",
        flow_run_id=UUID(result.run_id),
    )
    with get_client(sync_client=True) as client:
        client.create_artifact(artifact)
