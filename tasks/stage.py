"""What the stages of a run have in common: a Prefect task that retries what a retry can help.

Each stage is one task in a file of its own, declared with `stage`.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

from prefect import Task, get_run_logger, task
from prefect.cache_policies import DEFAULT
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import task_run
from prefect.tasks import exponential_backoff

from trainjob.errors import TrainjobError
from trainjob.events import StageFailed, StageFinished, StageStarted, emit

P = ParamSpec("P")
R = TypeVar("R")

NUM_RETRIES = 6
_BACKOFF_S = 2.0
_JITTER = 0.5


@dataclass(frozen=True, slots=True)
class Done(Generic[R]):
    """What a stage returns: its value, how long it took, and one line for a person."""

    stage: str
    seconds: float
    summary: str
    value: R


def stage(
    summary: Callable[[R], str], *, not_in_key: str | None = None
) -> Callable[[Callable[P, R]], Task[P, Done[R]]]:
    """Make a function the stage of its name: a task that is retried, timed and reported.

    The errors that are retried are those whose class says that a retry can help, with pauses of
    2, 4, 8, 16, 32 and 64 seconds, each made longer by chance by up to half: a store that restarts
    does not cost the training.

    Args:
        summary: Says in one line what the returned value means to a person.
        not_in_key: A parameter that does not count when a run that is resumed looks for the result
            of its first pass.
    """

    def decorate(function: Callable[P, R]) -> Task[P, Done[R]]:
        name = function.__name__

        @functools.wraps(function)
        def observed(*args: P.args, **kwargs: P.kwargs) -> Done[R]:
            attempt = task_run.run_count or 1
            emit(StageStarted(name, attempt))
            begun = time.monotonic()
            try:
                value = function(*args, **kwargs)
            except Exception as error:
                will_retry = _can_retry(error) and attempt <= NUM_RETRIES
                emit(StageFailed(name, time.monotonic() - begun, error, will_retry))
                raise
            done = Done(name, time.monotonic() - begun, summary(value), value)
            emit(StageFinished(name, done.seconds, done.summary))
            get_run_logger().info("%s: %s (%.1f s)", name, done.summary, done.seconds)
            return done

        return task(
            name=name,
            task_run_name=name,
            retries=NUM_RETRIES,
            retry_delay_seconds=exponential_backoff(_BACKOFF_S),
            retry_jitter_factor=_JITTER,
            retry_condition_fn=_retry_condition,
            cache_policy=DEFAULT - not_in_key if not_in_key else DEFAULT,
        )(observed)

    return decorate


def _retry_condition(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, Exception) and _can_retry(error)


def _can_retry(error: Exception) -> bool:
    return isinstance(error, TrainjobError) and error.retryable
