"""Run a job in this process, with the server that is configured or Prefect's temporary one."""

import os

_DEFAULTS = {
    # The terminal tells the story; Prefect's own lines beside it would tell it twice.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",  # 20 is short for a busy laptop
    # No outbound calls: a self-hosted product does not phone anyone.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)  # read when Prefect is imported, hence before it

from prefect.client.orchestration import get_client  # noqa: E402
from prefect.settings import PREFECT_API_URL  # noqa: E402

from flows.training_job import training_job  # noqa: E402
from trainjob.errors import TrainjobError  # noqa: E402
from trainjob.job import TrainingJob  # noqa: E402


def run_here(job: TrainingJob) -> tuple[str, str]:
    """Run `job` to its end and return the type and message of the state it ends in.

    Raises:
        TrainjobError: If a server is configured and does not answer.
    """
    _require_server()
    state = training_job(job, return_state=True)
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
