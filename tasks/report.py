"""Leave the report of a run beside it: a page for the Prefect UI, and its values for programs."""

import json
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from pydantic import TypeAdapter

from tasks.artifacts import artifact_key, write_artifact
from trainjob.job import TrainingJob
from trainjob.report import RunReport, report_markdown
from trainjob.report_places import places_markdown, places_of

RESULT_TYPE = "json"
"""Type of the artifact that holds the report as values; a run has one such, the latest counts."""

_REPORT = TypeAdapter(RunReport)


@task(
    name="report",
    task_run_name="report",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=1,
)
def report(result: RunReport, job: TrainingJob | None) -> None:
    """Write the report as artifacts, on success and on failure.

    Args:
        result: What the run did.
        job: Its job; None if it could not be read.
    """
    write_report(result, job)


def write_report(
    result: RunReport, job: TrainingJob | None, *, timeout_s: float | None = None
) -> None:
    """Write the report as artifacts of its run, from whatever process.

    They are ``job-JOB``, a page; ``result-JOB``, its values; and ``outputs-JOB``, links to what the
    run wrote, if it got as far as that.

    Args:
        result: What the run did.
        job: Its job; None if it could not be read.
        timeout_s: How long the server may take for an answer, of which there are some; None: as
            Prefect is set.
    """
    page = ArtifactCreate(
        type="markdown",
        key=artifact_key(result.job),
        data=report_markdown(result, job),
        description=f"{result.job}: {result.state}",
        flow_run_id=UUID(result.run_id),
    )
    # Not the result that Prefect persists: that is in a folder of the worker. See docs/programs.md.
    values = ArtifactCreate(
        type=RESULT_TYPE,
        key=artifact_key(result.job, "result"),
        data=json.loads(_REPORT.dump_json(result)),  # a metric that is nan becomes null
        description=f"{result.job}: {result.state}, for programs",
        flow_run_id=UUID(result.run_id),
    )
    httpx_settings = None if timeout_s is None else {"timeout": timeout_s}
    with get_client(httpx_settings=httpx_settings, sync_client=True) as client:
        write_artifact(client, page)
        write_artifact(client, values)
        if places := places_of(result, job):
            links = ArtifactCreate(
                type="markdown",
                key=artifact_key(result.job, "outputs"),
                data=places_markdown(places, result.run_id),
                description=next(iter(places.values())),  # is in lists, where people look first
                flow_run_id=UUID(result.run_id),
            )
            write_artifact(client, links)
