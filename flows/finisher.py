"""Finishes a run whose flow process is about to be killed, or was.

A worker kills a cancelled flow after 30 seconds, and all its flows at once when it is stopped
(Prefect 3.8), whatever the grace of the job and however much is left to upload. The process beside
the flow, `flows.guard`, becomes this one then. It waits until the ranks are gone, takes to the
stores what there is, leaves the report beside the run, and sees to its last state. Of a run that is
started again it saves what that goes on from, and no more. ``python -m flows.finisher FOLDER LOCK
asked|killed WORKER``; what it has to know comes by its standard input, so that what it has to hide
is in no file or command line.
"""

import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import UUID

from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Crashed, Failed

from blocks.object_store import load_settings
from flows.delivery import AWAITING_RESTART, is_begun_again
from flows.guarding import STOPPED_BY_SIGTERM, Order, order_file_of
from tasks.report import write_report
from trainjob.background import growing_pause_s, in_background
from trainjob.errors import StoreUnavailable
from trainjob.events import MetricsSummarised, Noted, listening
from trainjob.failure import Failure
from trainjob.launch.dead_flow import failure_of_dead_flow
from trainjob.metrics.patterns import MetricPatterns
from trainjob.metrics.recorder import MetricsRecorder
from trainjob.metrics.summary import MetricSummary
from trainjob.report import RunReport
from trainjob.run_lock import wait_for_ranks
from trainjob.run_record import RunRecord, stopped_text, with_saved
from trainjob.saving import save_checkpoints_and_logs, save_outputs, save_to_go_on
from trainjob.storage.receipt import OutputState
from trainjob.workspace import Workspace

T = TypeVar("T")

_logger = logging.getLogger(__name__)
_KILL_TIMEOUT_S = 15.0
_STATE_TIMEOUT_S = 90.0
"""So long after the word of a worker on a run that it ends, the same may come again: if a busy
server does not answer for 60 s, it is asked once more."""
_STATE_POLL_S = 1.0
_STATE_CALM_POLL_S = 5.0
_SERVER_PATIENCE_S = 600.0
_SERVER_PAUSE_S = 2.0
INTERRUPTED = "Interrupted"
"""Name of the Crashed state of a run whose process was killed, once what it left is saved."""

_CANCELLED = (StateType.CANCELLING, StateType.CANCELLED)
# Only the worker is told its exit status: of who is no child, the kernel tells that it is gone.
_VANISHED = (
    "its process ended without a word, killed (often for want of memory) or crashed; "
    "its worker's log has the exit status"
)
_WORKER_STOPPED = "its worker was stopped, which kills its runs at once"


@dataclass(frozen=True, slots=True)
class Call:
    """Why this process finishes a run.

    Attributes:
        lock: The descriptor that holds the workspace.
        is_asked: Whether the flow asked for it; otherwise it was killed before it could.
        worker: Is readable once the worker of the run has ended; None: it had before the flow was
            killed, or is not known.
    """

    lock: int
    is_asked: bool
    worker: int | None

    @property
    def is_worker_gone(self) -> bool:
        """Whether no worker is left to say what became of the run."""
        return self.worker is None or bool(select.select([self.worker], [], [], 0)[0])


def main() -> int:
    """Finish the run whose workspace is the first argument; the second holds the workspace."""
    order = Order.model_validate_json(sys.stdin.buffer.read())
    root, worker = Path(sys.argv[1]), int(sys.argv[4])
    call = Call(int(sys.argv[2]), sys.argv[3] == "asked", None if worker < 0 else worker)
    wait_for_ranks(Workspace(root), order.job.limits.grace.total_seconds() + _KILL_TIMEOUT_S)
    record = RunRecord(order.run_id, order.job.name, order.job)
    record.stages, record.attempts = list(order.report.stages), list(order.report.attempts)
    record.facts = dict(order.facts)
    record.number, record.rerun_of = order.report.number, order.report.rerun_of
    if not call.is_asked:
        record.take_over(len(order.report.attempts), is_explained=True)
        record.note(MetricsSummarised(_metrics_of(record.workspace)))
    with listening(record.note):
        _Finish(order, call, record).run()
    return 0


class _Finish:
    """How a run is finished.

    Args:
        order: What its flow said of it last.
        call: Why it is finished here.
        record: Has the attempts, and takes what becomes of the things of the run.
    """

    def __init__(self, order: Order, call: Call, record: RunRecord) -> None:
        self._order = order
        self._call = call
        self._record = record
        self._run_id = UUID(order.run_id)
        self._root = record.workspace.root
        self._why = _why(call)
        self._word: str | None = None
        """What the state of a run that had failed says while it is saved."""

    def run(self) -> None:
        """Save, report, and see to the state; nothing of that if the run is another process's."""
        is_begun_again, is_cancelled = (False, False) if self._call.is_asked else self._ask_once()
        if is_begun_again:
            return
        if not self._call.is_asked and self._order.is_restartable and not is_cancelled:
            self._save(self._save_to_go_on)
            is_cancelled = self._is_cancelled()
            if not is_cancelled:
                os.close(self._call.lock)
                self._see_crash_told()
                return
        state: OutputState = "Cancelled" if is_cancelled or self._call.is_asked else "Crashed"
        state = "Failed" if self._has_failed else state
        with self._keeping_it_failed():
            self._save(lambda: self._save_all(state))
            report = self._report(is_cancelled=self._is_cancelled())
            _patiently(lambda: write_report(report, self._order.job))
        order_file_of(self._root).unlink(missing_ok=True)  # the flow may end, and
        os.close(self._call.lock)  # a new process of the run may begin
        self._explain(report)

    @contextmanager
    def _keeping_it_failed(self) -> Iterator[None]:
        """See that a run which had failed is Failed in this block, and nothing else for long.

        Its worker calls it Crashed, by which a run that had asked for that is started again within
        half a minute, and trained to the same end.
        """
        if not self._has_failed:
            yield
            return
        text = stopped_text(self._why, self._order.report.error)
        self._word = f"what it left is being saved; {text}"
        ended = threading.Event()
        with in_background(partial(self._keep_explained, self._word, ended), "explain", ended):
            yield

    def _keep_explained(self, text: str, ended: threading.Event) -> None:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            while not ended.is_set():
                with suppress(HTTPError):  # a server that is away starts nothing either
                    self._explain_once(text)
                ended.wait(_STATE_POLL_S)

    def _ask_once(self) -> tuple[bool, bool]:
        """Return whether another process has begun the run, and whether it is cancelled.

        A server that is away now has started no other process, and one that waits for the lock of
        the workspace touches nothing yet.
        """
        try:
            with (
                temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
                get_client(sync_client=True) as client,
            ):
                is_begun_again = self._is_begun_again(client)
                return is_begun_again, _state(client, self._run_id).type in _CANCELLED
        except HTTPError:
            return False, False

    def _is_begun_again(self, client: SyncPrefectClient) -> bool:
        return is_begun_again(client, self._run_id, self._order.num_starts)

    def _is_cancelled(self) -> bool:
        def ask() -> bool:
            with get_client(sync_client=True) as client:
                return _state(client, self._run_id).type in _CANCELLED

        return _patiently(ask)

    def _save(self, save: Callable[[], None]) -> None:
        """Take what there is to its stores; what is known of that is in the record."""
        # What is at the urls of a run without attempts is of others, and not taken over.
        if not self._record.attempts or self._record.is_behind:
            return
        try:
            save()
        except Exception as error:  # the border of the process: the report says what is missing
            _logger.exception("not everything could be saved")
            self._record.note(Noted(f"not everything was saved, it is in {self._root}: {error}"))

    def _save_to_go_on(self) -> None:
        """Take to the stores what another process of the run needs, perhaps on another machine."""
        order = self._order
        if not order.has_trained:  # else they were sent, all of them
            settings = _patiently(lambda: load_settings(order.job.store))
            save_to_go_on(order.job, order.run_id, settings, secrets=order.secrets)

    def _save_all(self, state: OutputState) -> None:
        order = self._order
        settings = _patiently(lambda: load_settings(order.job.store))
        if not order.has_trained:  # else they were sent, all of them
            save_checkpoints_and_logs(order.job, order.run_id, settings, secrets=order.secrets)
        facts = order.facts if self._call.is_asked else self._record.receipt_facts(state)
        save_outputs(order.job, order.run_id, settings, facts, state)

    def _report(self, *, is_cancelled: bool) -> RunReport:
        """Return what the flow knew of the run, with what has become of it."""
        told, has_failed = self._order.report, self._has_failed
        otherwise = "Failed" if has_failed else "Crashed"
        found = self._record.report("Cancelled" if is_cancelled else otherwise, self._why)
        notes = tuple(dict.fromkeys((*told.notes, *found.notes)))
        known = replace(told, state=found.state, saved=found.saved, notes=notes, logs=found.logs)
        if self._call.is_asked:
            return known
        known = replace(known, attempts=found.attempts, spent=found.spent, metrics=found.metrics)
        if has_failed:
            return known
        is_training = not (is_cancelled or self._order.has_trained) and found.attempts
        return replace(known, error=self._why, failure=self._failure() if is_training else None)

    def _failure(self) -> Failure:
        """Return what is known of the attempt that ended with the flow."""
        attempt = self._record.attempts[-1].number
        log_dir = self._record.workspace.attempt_logs(attempt)
        headline = f"the training was interrupted: {self._why}"
        return failure_of_dead_flow(headline, log_dir, attempt, self._order.job.world_size)

    def _explain(self, report: RunReport) -> None:
        """Put what was saved into the state of the run, and again after its worker's own word."""
        failure = report.error if self._has_failed else None
        text = with_saved(stopped_text(self._why, failure), (*report.saved, *report.notes))
        is_over = _is_over(_patiently(lambda: self._explain_once(text)))
        begun = time.monotonic()
        deadline = begun + (_STATE_TIMEOUT_S if is_over else _SERVER_PATIENCE_S)
        is_last = self._is_nobody_left
        while not is_last and time.monotonic() < deadline:
            age_s = time.monotonic() - begun
            time.sleep(growing_pause_s(age_s, _STATE_POLL_S, _STATE_CALM_POLL_S))
            is_last = self._is_nobody_left  # before the look, which then is the last one
            with suppress(HTTPError):  # a server that is away hears no worker either
                if _is_over(self._explain_once(text)) and not is_over:
                    is_over = True
                    deadline = time.monotonic() + _STATE_TIMEOUT_S

    def _see_crash_told(self) -> None:
        """See that the server hears of a crash, from the worker or from here if that has ended too.

        By this a run is started again.
        """
        deadline = time.monotonic() + _STATE_TIMEOUT_S
        is_last = is_told = False
        while not (is_last or is_told):
            is_last = self._is_nobody_left or time.monotonic() > deadline  # before the look
            found = _patiently(lambda: self._explain_once(self._why))
            is_told = found is None or not found.is_running()
            if not (is_last or is_told):
                time.sleep(_STATE_POLL_S)

    def _explain_once(self, text: str) -> State[Any] | None:
        """Put a text into the state of the run, if it is to be said.

        Returns:
            The state that the run was in, or Crashed if that was to be said from here; None if
            another process has begun the run.
        """
        with get_client(sync_client=True) as client:
            state = _state(client, self._run_id)
            if self._is_begun_again(client):
                return None
            if state.type == StateType.RUNNING and self._is_nobody_left and not self._has_failed:
                # By this event, it is started again if it has asked for that, and watchers hear.
                state = Crashed(message=self._why)
                client.set_flow_run_state(self._run_id, state, force=True)
            explained = self._explained(state, text)
            if explained is not None and state.message != text:
                client.set_flow_run_state(self._run_id, explained, force=True)
            return state

    def _explained(self, state: State[Any], text: str) -> State[None] | None:
        """Return the state of the run with its reason; None: that is for others to say."""
        if state.type == StateType.CANCELLED:
            return Cancelled(message=text)
        if self._has_failed:
            return Failed(message=text) if self._is_to_be_failed(state) else None
        is_last_word = state.type == StateType.CRASHED and not self._order.is_restartable
        if self._call.is_asked or not is_last_word:
            return None
        # Not Crashed again: a second event of that name is what has a run started again.
        return Crashed(name=INTERRUPTED, message=text)

    def _is_to_be_failed(self, state: State[Any]) -> bool:
        """Tell whether it is from here that a run in this state, which had failed, is told so."""
        if state.type == StateType.FAILED:
            return state.message == self._word
        if state.type == StateType.RUNNING:
            return self._is_nobody_left
        return state.type == StateType.CRASHED or state.name == AWAITING_RESTART

    @property
    def _has_failed(self) -> bool:
        """Whether the run had failed by itself before it was stopped."""
        return self._order.state == "Failed"

    @property
    def _is_nobody_left(self) -> bool:
        """Whether neither the flow nor a worker can say what became of the run."""
        return os.getppid() != self._order.flow_pid and self._call.is_worker_gone


def _is_over(state: State[Any] | None) -> bool:
    """Tell whether it is known how a run ended, or another process has begun it."""
    return state is None or state.is_final()


def _why(call: Call) -> str:
    """Say why the run was not ended by its flow."""
    if call.is_asked:
        return STOPPED_BY_SIGTERM
    # A worker kills its flows before it ends: one that had ended first has not.
    is_of_worker = call.worker is not None and call.is_worker_gone
    return _WORKER_STOPPED if is_of_worker else _VANISHED


def _metrics_of(workspace: Workspace) -> tuple[MetricSummary, ...]:
    """Return what the metrics of the last attempt came to, of which the flow has not told."""
    recorder = MetricsRecorder(MetricPatterns(()))
    recorder.read_kept(workspace.metrics_dir(workspace.last_attempt))
    return recorder.summary()


def _patiently(ask: Callable[[], T]) -> T:
    """Return an answer of the server, which may be away for some minutes."""
    give_up_at = time.monotonic() + _SERVER_PATIENCE_S
    while True:
        try:
            return ask()
        except (HTTPError, StoreUnavailable):
            if time.monotonic() > give_up_at:
                raise
            time.sleep(_SERVER_PAUSE_S)


def _state(client: SyncPrefectClient, run_id: UUID) -> State[Any]:
    return cast(State[Any], client.read_flow_run(run_id).state)


if __name__ == "__main__":
    sys.exit(main())
