"""What a run tells its watchers while it goes on.

The steps of a run call `emit`; a terminal, a log or a test listens with `listening`. Nothing here
decides anything: without a listener every event is dropped.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from trainjob.report import RunReport


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage of the run began. `attempt` counts from 1 and grows when a task is retried."""

    stage: str
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class StageFinished:
    """A stage ended well; `summary` is one line for a person."""

    stage: str
    seconds: float
    summary: str


@dataclass(frozen=True, slots=True)
class StageFailed:
    """A stage raised; `will_retry` is whether the task is tried again."""

    stage: str
    seconds: float
    error: Exception
    will_retry: bool


@dataclass(frozen=True, slots=True)
class Transferred:
    """How far a copy is. Totals are those of the whole copy named `label`."""

    label: str
    num_files: int
    total_files: int
    size_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class RankOutput:
    """Lines that a rank wrote, without their line ends. `rank` None: the launcher itself."""

    rank: int | None
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepReported:
    """The script said how far it is (see `trainjob.progress.report`)."""

    rank: int
    step: int
    total: int | None
    epoch: int | None
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class MetricReported:
    """Values that the training reached, however they became known.

    Attributes:
        metrics: Values by name; more than one if they were said together.
        step: The step they belong to; None if that was not said.
        source: ``report``: `trainjob.progress.report`; ``regex``: a line that a rank wrote;
            ``tensorboard``: an event file among the outputs.
    """

    metrics: dict[str, float]
    step: int | None
    source: Literal["report", "regex", "tensorboard"]


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """The ranks are started.

    Attributes:
        attempt: Which attempt of the run this is, counted from 0.
        resumed_from: Step of the checkpoint that it goes on from; None if none of ours is there.
    """

    attempt: int
    resumed_from: int | None


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """The ranks failed; `will_restart` is whether they are started again."""

    attempt: int
    error: Exception
    will_restart: bool


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run is over; the report says how."""

    report: RunReport


Event = (
    StageStarted
    | StageFinished
    | StageFailed
    | Transferred
    | RankOutput
    | StepReported
    | MetricReported
    | AttemptStarted
    | AttemptFailed
    | RunEnded
)
Listener = Callable[[Event], None]

_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("trainjob_listeners", default=())


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the events of this context to `listener` until the block ends.

    A thread that emits must be started inside the block with a copy of the context
    (`contextvars.copy_context().run`). The listener is called on the thread that emits and must
    be quick and thread-safe.
    """
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


def emit(event: Event) -> None:
    """Tell every listener of this context."""
    for listener in _listeners.get():
        listener(event)
