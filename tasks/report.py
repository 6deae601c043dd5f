"""Leave a page about the run beside it in the Prefect UI."""

import re

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from trainjob.job import TrainingJob
from trainjob.report import RunReport, report_markdown


def artifact_key(job: str) -> str:
    """Return the key that the reports of a job have in common: letters, digits and dashes."""
    return f"job-{re.sub('[^a-z0-9]+', '-', job.lower()).strip('-')}"


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
    create_markdown_artifact(
        markdown=report_markdown(result, job),
        key=artifact_key(result.job),
        description=f"{result.job}: {result.state}",
    )
