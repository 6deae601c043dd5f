"""Run a job in this process."""

from typing import Any, cast

from prefect import State
from prefect.exceptions import TerminationSignal

from flows.server import reach_server
from flows.training_job import already_checked, training_job
from trainjob.job import TrainingJob


def run_here(job: TrainingJob) -> tuple[str, str]:
    """Run a job that was checked to its end; return name and message of the state it ends in.

    Raises:
        TrainjobError: If a server is configured and does not answer.
        KeyboardInterrupt: If a signal stopped the run before it had a state.
    """
    reach_server()
    try:
        with already_checked():
            state = cast(State[Any], training_job(job, return_state=True))
    except TerminationSignal as error:
        # What Prefect makes of SIGTERM while a flow runs.
        raise KeyboardInterrupt from error
    return state.name or state.type.value, state.message or ""
