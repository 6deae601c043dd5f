"""Finishes a run whose flow process is about to be killed.

A worker kills a cancelled flow after 30 seconds (Prefect 3.8), whatever the grace of the job and
however much is left to upload. So a flow that is told to end starts this process, in a session of
its own, and waits for it as long as it may. It waits until the ranks are gone, takes to the stores
what there is, and leaves the report beside the run. ``python -m flows.finisher FOLDER LOCK``; what
it has to hide in the logs comes by its standard input, so that it is in no file or command line.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, TypeVar, cast
from uuid import UUID

from httpx import HTTPError
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.states import Cancelled
from pydantic import BaseModel, ConfigDict

from blocks.object_store import load_settings
from tasks.report import write_report
from trainjob.errors import StoreUnavailable, TrainjobError
from trainjob.events import Noted, listening
from trainjob.job import TrainingJob
from trainjob.report import RunReport
from trainjob.run_lock import wait_for_ranks
from trainjob.run_record import RunRecord, stopped_text, with_saved
from trainjob.saving import save_checkpoints_and_logs, save_outputs
from trainjob.storage.receipt import OutputState
from trainjob.workspace import Workspace

T = TypeVar("T")

_logger = logging.getLogger(__name__)
_KILL_TIMEOUT_S = 15.0
_STATE_TIMEOUT_S = 45.0
"""By then a worker has set the last state of a run that it ends."""
_STATE_POLL_S = 1.0
_SERVER_PATIENCE_S = 600.0
_SERVER_PAUSE_S = 2.0
_POLL_S = 0.2
_CANCELLED = (StateType.CANCELLING, StateType.CANCELLED)
_HOME = Path(__file__).resolve().parents[1]
STOPPED_BY_SIGTERM = "stopped by SIGTERM: the run was cancelled, or its worker ended"


class _Order(BaseModel):
    """What a finisher has to know."""

    # Every run imports this, few are stopped.
    model_config = ConfigDict(defer_build=True)

    run_id: str
    job: TrainingJob
    state: OutputState
    report: RunReport
    facts: dict[str, object]
    has_trained: bool


class Finisher:
    """The process that finishes a run, from the flow's side.

    Args:
        record: What is known of the run; read when the process is started, as is the next.
        secrets: What the ranks were given and nobody may find in the logs.

    Attributes:
        lock: The descriptor by which the flow holds the workspace; None while it does not.
        failure: Why the run failed, if it had when it was stopped.
        process: The process; None until it is started.
    """

    def __init__(self, record: RunRecord, secrets: Collection[str] = ()) -> None:
        self.lock: int | None = None
        self.failure: TrainjobError | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._record = record
        self._secrets = secrets

    def start(self) -> bool:
        """Start the process, once; return False if there is no need or nothing to finish.

        Only a worker kills a flow that takes long to end.
        """
        is_under_worker = "PREFECT__FLOW_RUN_ID" in os.environ
        if not is_under_worker or self._record.job is None or self.lock is None:
            return False
        if self._record.is_behind:
            return False
        try:
            if self.process is None:
                self.process = _start(self._record, self.failure, self.lock)
            _tell_secrets(self.process, self._secrets)
        except OSError:  # a full disk, or no more processes: the flow does what it can itself
            _logger.exception("the finisher could not be started")
            return False
        return True

    def wait(self) -> bool:
        """Wait until everything is saved and reported; return whether it is."""
        order_file = _order_file(self._record.workspace.root)
        while self.process is not None and self.process.poll() is None and order_file.exists():
            time.sleep(_POLL_S)
        return not order_file.exists()


def _start(
    record: RunRecord, failure: TrainjobError | None, lock: int
) -> "subprocess.Popen[bytes]":
    state: OutputState = "Failed" if failure else "Cancelled"
    order = _Order(
        run_id=record.run_id,
        job=record.job,
        state=state,
        report=record.report(state, failure or STOPPED_BY_SIGTERM),
        facts=record.receipt_facts(state),
        has_trained=record.has_trained,
    )
    root = record.workspace.root
    record.workspace.logs.mkdir(parents=True, exist_ok=True)
    _order_file(root).write_text(order.model_dump_json(), encoding="utf-8")
    with (record.workspace.logs / "finisher.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.finisher", str(root), str(lock)],
            cwd=_HOME,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[lock],  # so that no new process of the run begins before this one ends
        )


def _tell_secrets(process: "subprocess.Popen[bytes]", secrets: Collection[str]) -> None:
    """Give the process what it waits for, once, also when the first start was interrupted."""
    told = cast(IO[bytes], process.stdin)
    if not told.closed:
        with suppress(BrokenPipeError), told:  # whoever waits for the process sees that it is gone
            told.write(json.dumps(list(secrets)).encode())


def main() -> int:
    """Finish the run whose workspace is the first argument; the second holds the workspace."""
    secrets = _told_secrets(sys.stdin.buffer.read())
    root, lock = Path(sys.argv[1]), int(sys.argv[2])
    order = _Order.model_validate_json(_order_file(root).read_text(encoding="utf-8"))
    grace_s = order.job.limits.grace.total_seconds()
    wait_for_ranks(Workspace(root), grace_s + _KILL_TIMEOUT_S)
    record = RunRecord(order.run_id, order.job.name, order.job)
    with listening(record.note):
        try:
            _save(order, record, secrets)
        except Exception as error:  # the border of the process: the report says what is missing
            _logger.exception("not everything could be saved")
            record.note(Noted(f"not everything was saved, it is in {root}: {error}"))
    found = record.report(order.state, None)
    run_id = UUID(order.run_id)
    is_cancelled = _patiently(lambda: _state(run_id)).type in _CANCELLED
    otherwise = "Failed" if order.state == "Failed" else "Crashed"
    report = replace(
        order.report,
        state="Cancelled" if is_cancelled else otherwise,
        saved=found.saved,
        notes=tuple(dict.fromkeys((*order.report.notes, *found.notes))),
        logs=found.logs,
    )
    _patiently(lambda: write_report(report, order.job))
    _order_file(root).unlink()  # the flow may end, and
    os.close(lock)  # a new process of the run may begin
    if is_cancelled:
        failure = order.report.error if order.state == "Failed" else None
        stopped = stopped_text(STOPPED_BY_SIGTERM, failure)
        _explain_state(run_id, with_saved(stopped, (*found.saved, *found.notes)))
    return 0


def _told_secrets(told: bytes) -> list[str]:
    """Return what to hide; none if the flow was killed before it had said all."""
    try:
        return list(json.loads(told))
    except ValueError:
        return []


def _save(order: _Order, record: RunRecord, secrets: Collection[str]) -> None:
    """Take everything to its store; what is known of it is in the record."""
    if not order.report.attempts:  # what is at the urls is of others, and not taken over
        return
    settings = _patiently(lambda: load_settings(order.job.store))
    if not order.has_trained:  # else they were sent, all of them
        save_checkpoints_and_logs(order.job, record.run_id, settings, secrets=secrets)
    save_outputs(order.job, record.run_id, settings, order.facts, order.state)


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


def _explain_state(run_id: UUID, text: str) -> None:
    """Put what was saved into the state of the run, and again after its worker's own word."""
    deadline = time.monotonic() + _STATE_TIMEOUT_S
    while time.monotonic() < deadline:
        _patiently(lambda: _explain_once(run_id, text))
        time.sleep(_STATE_POLL_S)


def _explain_once(run_id: UUID, text: str) -> None:
    state = _state(run_id)
    if state.type == StateType.CANCELLED and state.message != text:
        explained: State[None] = Cancelled(message=text)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run_id, explained, force=True)


def _state(run_id: UUID) -> State[Any]:
    with get_client(sync_client=True) as client:
        return cast(State[Any], client.read_flow_run(run_id).state)


def _order_file(root: Path) -> Path:
    return root / "finish.json"


if __name__ == "__main__":
    sys.exit(main())
