"""The check of a job with what only Prefect's server knows: its store, its secrets, its pool.

What of these is not there is a problem among the others, so that one check tells everything. Called
by the flows and, for jobs that name such things, by the command line.
"""

from blocks.object_store import load_settings
from blocks.saved_secrets import secret_problems
from flows.local_places import lost_places
from trainjob.check.checking import Findings, check_job
from trainjob.errors import JobError, Problem, StoreUnavailable
from trainjob.job import TrainingJob
from trainjob.storage.settings import StoreSettings


def check_with_server(job: TrainingJob) -> Findings:
    """Find everything that would keep `job` from running on this machine.

    Args:
        job: A job whose paths are absolute (`TrainingJob.resolved`).
    """
    settings, problems = _settings_of(job.store)
    return check_job(job, settings, [*problems, *secret_problems(job.secrets), *lost_places(job)])


def _settings_of(store: str | None) -> tuple[StoreSettings | None, list[Problem]]:
    """Return the settings of a store, or why there are none."""
    try:
        return load_settings(store), []
    except JobError as error:
        return None, list(error.problems)
    except StoreUnavailable as error:
        found = f"no answer of Prefect's server ({error.__cause__})"
        do = "try again when it is there"
        asked = f"the saved store {store!r}"
        return None, [Problem("store", asked, found, do, may_pass=True)]
