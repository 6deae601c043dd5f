"""Finishes a run whose flow process is about to be killed: ``python -m flows.finisher FOLDER``.

A worker kills a cancelled flow after 30 seconds (Prefect 3.8), whatever the grace of the job and
however much is left to upload. So a flow that is told to end starts this process, in a session of
its own, and waits for it as long as it may. It waits until the ranks are gone, takes to the stores
what there is, and leaves the report beside the run.
"""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelled
from pydantic import BaseModel

from blocks.object_store import load_settings
from tasks.report import write_report
from trainjob.events import listening
from trainjob.job import TrainingJob
from trainjob.launch.waiting import wait_for_supervisor
from trainjob.report import RunReport
from trainjob.run_record import RunRecord
from trainjob.saving import save_checkpoints_and_logs, save_outputs
from trainjob.storage.receipt import OutputState
from trainjob.workspace import Workspace

_KILL_TIMEOUT_S = 15.0
_STATE_TIMEOUT_S = 60.0
_POLL_S = 0.2
_CANCELLED = (StateType.CANCELLING, StateType.CANCELLED)
_HOME = Path(__file__).resolve().parents[1]
_STATE: OutputState = "Cancelled"
STOPPED_BY_SIGTERM = "stopped by SIGTERM: the run was cancelled, or its worker ended"


class _Order(BaseModel):
    """What a finisher has to know."""

    run_id: str
    job: TrainingJob
    report: RunReport
    facts: dict[str, object]


class Finisher:
    """The process that finishes a run, from the flow's side.

    Args:
        record: What is known of the run; read when the process is started.
    """

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> bool:
        """Start the process, once; return False if there is no need or nothing to finish.

        Only a worker kills a flow that takes long to end.
        """
        record = self._record
        is_under_worker = "PREFECT__FLOW_RUN_ID" in os.environ
        if not is_under_worker or record.job is None or not record.workspace.root.exists():
            return False
        if self._process is None:
            self._process = _start(record)
        return True

    def wait(self) -> None:
        """Wait until everything is saved and reported."""
        order_file = _order_file(self._record.workspace.root)
        while self._process is not None and self._process.poll() is None and order_file.exists():
            time.sleep(_POLL_S)


def _start(record: RunRecord) -> "subprocess.Popen[bytes]":
    order = _Order(
        run_id=record.run_id,
        job=record.job,
        report=record.report(_STATE, STOPPED_BY_SIGTERM),
        facts=record.receipt_facts(_STATE),
    )
    root = record.workspace.root
    _order_file(root).write_text(order.model_dump_json(), encoding="utf-8")
    record.workspace.logs.mkdir(exist_ok=True)
    with (record.workspace.logs / "finisher.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.finisher", str(root)],
            cwd=_HOME,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def main() -> int:
    """Finish the run whose workspace is the first argument."""
    root = Path(sys.argv[1])
    order = _Order.model_validate_json(_order_file(root).read_text(encoding="utf-8"))
    grace_s = order.job.limits.grace.total_seconds()
    workspace = Workspace(root)
    last = workspace.attempt_logs(workspace.next_attempt() - 1)
    wait_for_supervisor(last / "records", grace_s + _KILL_TIMEOUT_S)
    record = RunRecord(order.run_id, order.job.name, order.job)
    with listening(record.note):
        settings = load_settings(order.job.store)
        save_checkpoints_and_logs(order.job, order.run_id, settings)
        save_outputs(order.job, order.run_id, settings, order.facts, _STATE)
    found = record.report(_STATE, None)
    with get_client(sync_client=True) as client:
        is_cancelled = _state_type(client, order.run_id) in _CANCELLED
        report = replace(
            order.report,
            state=_STATE if is_cancelled else "Crashed",
            saved=found.saved,
            outputs=found.outputs,
            logs=found.logs,
        )
        write_report(report, order.job)
        _order_file(root).unlink()  # the flow may end
        if is_cancelled:
            _explain_state(client, order.run_id, found.saved)
    return 0


def _explain_state(client: SyncPrefectClient, run_id: str, saved: tuple[str, ...]) -> None:
    """Put what was saved into the state of the run, once the worker has set it."""
    deadline = time.monotonic() + _STATE_TIMEOUT_S
    while _state_type(client, run_id) != StateType.CANCELLED and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    message = (
        f"{STOPPED_BY_SIGTERM}. Saved: {'; '.join(saved) or 'nothing, there was nothing to save'}"
    )
    client.set_flow_run_state(UUID(run_id), Cancelled(message=message), force=True)


def _state_type(client: SyncPrefectClient, run_id: str) -> StateType | None:
    state = client.read_flow_run(UUID(run_id)).state
    return state.type if state else None


def _order_file(root: Path) -> Path:
    return root / "finish.json"


if __name__ == "__main__":
    sys.exit(main())
