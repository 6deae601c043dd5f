"""The flow of a check: what a run of the job would meet on the machine of a worker."""

from pathlib import Path
from typing import Any, cast

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.check_text import NOT_READ, findings_markdown
from flows.registry_place import chosen_registry
from flows.server_check import check_with_server
from tasks.artifacts import artifact_key
from trainjob.check.checking import Findings
from trainjob.errors import JobError
from trainjob.job import TrainingJob


# Parameters are not validated by Prefect: its message has one problem at a time and no advice.
@flow(name="check-job", validate_parameters=False)
def check_training_job(job: TrainingJob) -> Findings:
    """Say everything that is wrong with a job, without running it.

    Args:
        job: What would be trained.

    Returns:
        Warnings, and what was not checked; both are in an artifact of the run, as are errors.

    Raises:
        JobError: With all errors of the job.
    """
    given = cast("TrainingJob | dict[str, Any]", job)
    name = given.get("name") if isinstance(given, dict) else given.name
    try:
        if not isinstance(given, TrainingJob):
            given = TrainingJob.parse(given, f"job {name!r}", chosen_registry())
        findings = check_with_server(given.resolved(Path.cwd()))
    except JobError as error:
        findings = Findings(error.problems, (NOT_READ,))
    # The artifact is of this run, and of this job's line of checks.
    create_markdown_artifact(findings_markdown(findings), key=artifact_key(str(name), "check"))
    if findings.errors:
        raise JobError(f"job {name!r}", findings.errors)
    return findings
