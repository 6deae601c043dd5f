"""Keeps copies of folders up to date while a training runs, without ever getting in its way.

One thread makes the passes of all mirrors. A store that is gone is told once and tried again with
the next pass; what a person has to mend is reported once; what is missing at the end is named.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from trainjob.background import background_thread
from trainjob.errors import (
    CheckpointsOfAnother,
    OutputNotEmpty,
    StoreError,
    StoreUnavailable,
    TreeChanged,
    UnsafeKey,
)
from trainjob.events import Synced, emit
from trainjob.storage.deadline import Deadline, ending_at
from trainjob.storage.failures import failure
from trainjob.storage.live_tree import named
from trainjob.storage.sync import Mirror, SyncReport

_LOGGER = logging.getLogger(__name__)

SETTLE_S = 3.0
_SOON_S = 5.0
_SLACK_S = 2.0
_FIRST_RETRY_S = 0.5
_LAST_RETRY_S = 5.0

_OF_OTHERS = (CheckpointsOfAnother, OutputNotEmpty)
"""What ends a mirror at once: it must not write there any longer."""

T = TypeVar("T")

OnProblem = Callable[[StoreError], None]


class Sync:
    """What is being kept in stores.

    Attributes:
        reports: What each mirror saved and what is missing, in their order, when all is over.
    """

    def __init__(self) -> None:
        self.reports: list[SyncReport] = []
        self._break_off: Callable[[], None] = lambda: None

    def abandon(self) -> None:
        """End at once and without a final pass, which another process makes; nothing is reported.

        Safe to call from any thread.
        """
        self._break_off()


@contextmanager
def syncing(
    mirrors: Sequence[Mirror],
    interval_s: float = 30.0,
    on_problem: OnProblem | None = None,
    *,
    flush_s: float = 60.0,
    settle_s: float = SETTLE_S,
) -> Iterator[Sync]:
    """Make passes of all mirrors until the block ends, and then a final one.

    Nothing that a store does is raised. The first pass comes at once, the second one soon, and the
    pause after a pass is at least `interval_s` and `Mirror.rest_factor` times as long as the pass.
    `Synced` is emitted of every pass that ended well.

    Args:
        mirrors: What to keep, that of which least may be lost first.
        interval_s: The usual pause between two passes of a mirror.
        on_problem: Called with what only a person can mend, once for each such problem, on another
            thread; it is in the log, too. A folder that belongs to another run is left alone from
            then on.
        flush_s: How long the final pass of all mirrors may take together. It is tried again until
            then while a store is gone.
        settle_s: How long a file has to stay as it is to be taken for finished.
    """
    sync, thread = Sync(), _SyncThread(mirrors, interval_s, on_problem, settle_s)
    sync._break_off = thread.abandon
    try:
        thread.start()
        yield sync
    finally:
        sync.reports = thread.finish(flush_s)


def flush(mirrors: Sequence[Mirror], flush_s: float) -> list[SyncReport]:
    """Make the final pass of all mirrors and return what is saved and what is missing.

    For a process that finishes what another one began; nothing that a store does is raised.

    Args:
        mirrors: Made with the same arguments as in the other process.
        flush_s: How long all may take together.
    """
    deadline = Deadline(flush_s)
    with ending_at(deadline):
        return _flush(mirrors, deadline)


def pause_s(interval_s: float, pass_s: float, rest_factor: float, num_passes: int) -> float:
    """Return how long to wait after a pass.

    Args:
        interval_s: The usual pause.
        pass_s: How long the pass took.
        rest_factor: How many times as long the pause has to be.
        num_passes: How many passes there were, this one included.
    """
    usual = min(interval_s, _SOON_S) if num_passes == 1 else interval_s
    return max(usual, rest_factor * pass_s)


@dataclass(slots=True)
class _Turn:
    """A mirror: when it is next, and what was told of it."""

    mirror: Mirror
    due: float
    num_passes: int = 0
    is_out: bool = False
    told: str | None = None
    told_odd: set[str] = field(default_factory=set)
    end: StoreError | None = None


class _SyncThread:
    def __init__(
        self,
        mirrors: Sequence[Mirror],
        interval_s: float,
        on_problem: OnProblem | None,
        settle_s: float,
    ) -> None:
        now = time.monotonic()
        self._turns = [_Turn(mirror, now) for mirror in mirrors]
        self._interval_s = interval_s
        self._settle_s = settle_s
        self._on_problem = on_problem
        self._deadline = Deadline()
        self._stopping = threading.Event()
        # Not Thread.join: interrupted once, it says ever after that the thread has ended (CPython
        # 3.11, bpo-45274).
        self._ended = threading.Event()
        self._is_abandoned = False
        self._reports: list[SyncReport] = []
        self._thread = background_thread(self._run, "sync")

    def start(self) -> None:
        try:
            self._thread.start()
        except BaseException:  # a signal, or no room for a thread: there is nothing to save yet
            self.abandon()
            raise

    def abandon(self) -> None:
        """End at once, in the middle of a pass, too."""
        self._is_abandoned = True
        self._deadline.set(0)
        self._stopping.set()

    def finish(self, flush_s: float) -> list[SyncReport]:
        """Let the passes end with a final one and return its reports."""
        try:
            if not self._is_abandoned:
                self._deadline.set(flush_s)
            self._stopping.set()
            if self._thread.is_alive():  # otherwise, its start was interrupted
                self._ended.wait(max(self._deadline.left_s, 0) + _SLACK_S)
        except BaseException:  # the process is told to end now
            self.abandon()
            self._ended.wait(_SLACK_S)  # who finishes the copies must be alone with them
            raise
        if self._is_abandoned:
            return []
        if not self._reports:
            return [turn.mirror.known(_out_of_time(turn.mirror)) for turn in self._turns]
        return self._reports

    def _run(self) -> None:
        try:
            with ending_at(self._deadline):
                self._make_passes()
        finally:
            self._ended.set()

    def _make_passes(self) -> None:
        while turns := [turn for turn in self._turns if turn.end is None]:
            turn = min(turns, key=lambda turn: turn.due)
            if self._stopping.wait(max(turn.due - time.monotonic(), 0)):
                break
            self._take(turn)
        self._stopping.wait()
        if not self._is_abandoned:
            self._reports = self._final_pass()

    def _take(self, turn: _Turn) -> None:
        """Make one pass of a mirror."""
        pass_s = 0.0  # one that failed took the time of the network, not that of the training
        try:
            if _guarded(turn.mirror, turn.mirror.look) and self._stopping.wait(self._settle_s):
                return
            started = time.monotonic()
            report = _guarded(turn.mirror, partial(turn.mirror.push, is_final=False))
        except StoreError as error:
            self._failed(turn, error)
        else:
            pass_s = time.monotonic() - started
            emit(Synced(turn.mirror.label))
            _succeeded(turn)
            self._tell_odd(turn, report)
        turn.num_passes += 1
        rest = pause_s(self._interval_s, pass_s, turn.mirror.rest_factor, turn.num_passes)
        turn.due = time.monotonic() + rest

    def _failed(self, turn: _Turn, error: StoreError) -> None:
        """Tell of a failure what was not told yet."""
        if isinstance(error, TreeChanged):
            _LOGGER.debug("%s: changed while it was saved: %s", turn.mirror.label, error)
        elif error.retryable:
            if not turn.is_out:
                _LOGGER.warning(
                    "%s: not saved now, tried until the end: %s", turn.mirror.label, error
                )
            turn.is_out = True
        else:
            if isinstance(error, _OF_OTHERS):
                turn.end = error
            if str(error) != turn.told:
                self._tell(turn, error)
            turn.told = str(error)

    def _tell_odd(self, turn: _Turn, report: SyncReport) -> None:
        """Tell of what cannot be sent, each thing once, while the script can still mend it."""
        new = {path: why for path, why in report.odd.items() if path not in turn.told_odd}
        if new:
            turn.told_odd |= new.keys()
            found = f"not all that is written there can be sent: {named(new)}"
            do = "let the script put regular files there, or delete or rename these"
            self._tell(turn, failure(UnsafeKey, report.url, found, do))

    def _tell(self, turn: _Turn, error: StoreError) -> None:
        """Tell of what a person has to mend."""
        _LOGGER.warning("%s: %s", turn.mirror.label, error)
        if self._on_problem is not None:
            self._on_problem(error)

    def _final_pass(self) -> list[SyncReport]:
        active = [turn.mirror for turn in self._turns if turn.end is None]
        flushed = iter(_flush(active, self._deadline))
        return [turn.mirror.known(turn.end) if turn.end else next(flushed) for turn in self._turns]


def _succeeded(turn: _Turn) -> None:
    if turn.is_out or turn.told is not None:
        _LOGGER.info("%s: saved again to %s", turn.mirror.label, turn.mirror.url)
    turn.is_out, turn.told = False, None


def _flush(mirrors: Sequence[Mirror], deadline: Deadline) -> list[SyncReport]:
    """Try the final pass of all mirrors until each has ended well or the time is over."""
    reports: dict[int, SyncReport] = {}
    left = list(enumerate(mirrors))
    retry_s = _FIRST_RETRY_S
    while left:
        again = []
        for index, mirror in left:
            try:
                reports[index] = _guarded(mirror, partial(mirror.push, is_final=True))
            except StoreError as error:
                reports[index] = mirror.known(error)
                again += [(index, mirror)] if error.retryable else []
        left = again if deadline.left_s > retry_s else []
        if left:
            time.sleep(retry_s)
            retry_s = min(2 * retry_s, _LAST_RETRY_S)
    return [reports[index] for index in range(len(mirrors))]


def _guarded(mirror: Mirror, work: Callable[[], T]) -> T:
    """Do `work` of a mirror, and turn a mistake of ours into a problem of this mirror alone."""
    try:
        return work()
    except StoreError:
        raise
    except Exception as error:
        _LOGGER.exception("%s: not saved to %s", mirror.label, mirror.url)
        found = f"a mistake in trainjob ({type(error).__name__})"
        raise failure(StoreError, mirror.url, found, "see the log, and report it") from error


def _out_of_time(mirror: Mirror) -> StoreUnavailable:
    found = "not finished in the time that was left"
    return failure(StoreUnavailable, mirror.url, found, "look at the disk of this machine")
