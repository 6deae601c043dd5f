"""Run a job in this process, with the server that is configured or Prefect's temporary one."""

from typing import Any, cast

from prefect import State
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from flows.training_job import training_job
from trainjob.errors import TrainjobError
from trainjob.job import TrainingJob


def run_here(job: TrainingJob) -> tuple[str, str]:
    """Run `job` to its end and return the type and message of the state it ends in.

    Raises:
        TrainjobError: If a server is configured and does not answer.
    """
    _require_server()
    state = cast(State[Any], training_job(job, return_state=True))
    return state.type.value, state.message or ""


def _require_server() -> None:
    url = PREFECT_API_URL.value()
    if not url:
        return
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem is not None:
        raise TrainjobError(
            f"the Prefect server at {url!r} does not answer ({problem}); start it, or unset "
            "PREFECT_API_URL to use a temporary one"
        )
