"""Leave a page about the run beside it in the Prefect UI."""

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from trainjob.job import TrainingJob
from trainjob.report import RunReport, report_markdown


@task(name="report", cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=1)
def report(result: RunReport, job: TrainingJob | None) -> None:
    """Write the report as a markdown artifact, on success and on failure.

    Args:
        result: What the run did.
        job: Its job; None if it could not be read.
    """
    create_markdown_artifact(
        markdown=report_markdown(result, job),
        key="training-job",
        description=f"{result.job}: {result.state}",
    )
