"""What a run tells its watchers while it goes on.

The steps of a run call `emit`; a terminal, a log or a test listens with `listening`. Nothing here
decides anything: without a listener every event is dropped.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the report leads to the whole job, which a copy of files has no need of
    from trainjob.metrics.summary import MetricSummary
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
    """How far a copy is.

    Totals are those of the whole copy named `label`; None while they are not known.
    """

    label: str
    num_files: int
    total_files: int | None
    size_bytes: int
    total_bytes: int | None


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
        has_files: Whether its checkpoint folder holds anything, such as what the script has saved
            in its own way.
    """

    attempt: int
    resumed_from: int | None
    has_files: bool = False


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """Every process of the attempt is gone.

    Attributes:
        attempt: Which attempt of the run this is, counted from 0.
        seconds: How long it trained.
        reason: ``finished``, ``auto_stop`` or ``target``; None if it failed or was interrupted.
        error: Why it failed, if it did.
        will_restart: Whether the ranks are started again.
        log_dir: Folder of its logs on the machine that trained.
    """

    attempt: int
    seconds: float
    reason: Literal["finished", "auto_stop", "target"] | None
    error: Exception | None
    will_restart: bool
    log_dir: str


@dataclass(frozen=True, slots=True)
class Synced:
    """All that was finished of what `label` names is in its store now; the training goes on."""

    label: str


@dataclass(frozen=True, slots=True)
class Saved:
    """What lies in a store when the training has ended.

    Attributes:
        label: What it is: an output by its name, ``checkpoints`` or ``logs``.
        url: Where it is.
        num_files: How many files are there, verified.
        size_bytes: Their size.
        missing: Why, or which files, are not there; empty if all are.
    """

    label: str
    url: str
    num_files: int
    size_bytes: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Noted:
    """Something that a person should know at the end, in one line; no reason to fail."""

    text: str


@dataclass(frozen=True, slots=True)
class MetricsSummarised:
    """What the metrics came to over all attempts of the run."""

    metrics: "tuple[MetricSummary, ...]"


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run is over; the report says how."""

    report: "RunReport"


Event = (
    StageStarted
    | StageFinished
    | StageFailed
    | Transferred
    | RankOutput
    | StepReported
    | MetricReported
    | AttemptStarted
    | AttemptEnded
    | Synced
    | Saved
    | Noted
    | MetricsSummarised
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
