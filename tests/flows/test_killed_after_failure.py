"""A run that has failed by its own fault and whose flow process is killed while it saves."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_HOME
from prefect.states import Crashed

from flows.delivery import AWAITING_RESTART, RESTART_PENDING
from flows.training_job import training_job
from tests.e2e.machine import processes_with
from tests.e2e.watched_runs import page_of
from tests.jobs import make_job
from tests.waiting import wait_until
from trainjob.storage.receipt import read_receipt, verify_receipt

pytestmark = pytest.mark.timeout(600)

FAIL = """\
import os, pathlib
(pathlib.Path(os.environ["TRAIN_URL"]) / "model.txt").write_text("weights")
(pathlib.Path(os.environ["TRAINJOB_CHECKPOINT_DIR"]) / "state.txt").write_text("state")
raise ValueError("no such layer")
"""
# Stands still for ever at the first sign of what the second argument names.
FLOW = """\
import os, pathlib, sys, threading
from uuid import UUID
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from flows.training_job import training_job
from trainjob.events import Saved, Transferred, listening
def stand_still(event):
    is_there = {
        "checkpoints": isinstance(event, Saved) and event.label == "checkpoints",
        "outputs": isinstance(event, Transferred) and event.label == "verify train_url",
    }
    if is_there[sys.argv[2]]:
        pathlib.Path(sys.argv[1]).touch()
        threading.Event().wait()
with get_client(sync_client=True) as client:
    run = client.read_flow_run(UUID(os.environ["PREFECT__FLOW_RUN_ID"]))
with listening(stand_still):
    run_flow(training_job, flow_run=run)
"""
# A worker that hears of nothing: what it would say, a test says.
WORKER = 'python="$1"; shift; "$python" -c "$@" >/dev/null & echo $!; exec sleep 600'


class Killed:
    """A run whose flow process has been killed in the middle of its saving."""

    def __init__(self, client: SyncPrefectClient, folder: Path, place: str) -> None:
        self._client = client
        job = make_job(
            folder, FAIL, limits={"auto_restart": 2}, checkpoints={"url": str(folder / "kept")}
        )
        flow = client.create_flow(training_job)
        deployment = client.create_deployment(flow, f"pool-{uuid4()}")
        run = client.create_flow_run_from_deployment(deployment, parameters={"job": job})
        self.run_id = run.id
        self.root = folder / "runs" / str(run.id)
        marker = folder / "saving"
        self._worker = subprocess.Popen(
            ["sh", "-c", WORKER, "worker", sys.executable, FLOW, str(marker), place],
            env=os.environ | {"PREFECT__FLOW_RUN_ID": str(run.id)},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
        )
        assert self._worker.stdout is not None
        self._flow = int(self._worker.stdout.readline())
        wait_until(marker.exists, said=lambda: self.state)

    def kill(self, *, worker: bool) -> None:
        os.kill(self._flow, signal.SIGKILL)
        if worker:
            self._worker.kill()
            self._worker.wait()

    def end(self) -> None:
        for pid in [*processes_with(os.fsencode(self.root)), self._flow]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._worker.kill()
        self._worker.communicate()

    def become(self, state: State[Any]) -> None:
        self._client.set_flow_run_state(self.run_id, state, force=True)

    @property
    def state(self) -> State[Any]:
        state = self._client.read_flow_run(self.run_id).state
        assert state is not None
        return state

    @property
    def states(self) -> list[str]:
        found = self._client.read_flow_run_states(self.run_id)
        return [state.name or "" for state in sorted(found, key=lambda state: state.timestamp)]

    def wait_until_saved(self) -> str:
        wait_until(
            lambda: self.state.is_failed() and "Saved: " in (self.state.message or ""),
            said=lambda: (self.states, self.state.message),
        )
        return self.state.message or ""


@pytest.fixture
def killed(
    tmp_path: Path,
    prefect_server: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Killed]:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("PREFECT_HOME", str(PREFECT_HOME.value()))
    with get_client(sync_client=True) as client:
        run = Killed(client, tmp_path, request.param)
        yield run
        run.end()


@pytest.mark.parametrize("killed", ["checkpoints", "outputs"], indirect=True)
def test_it_is_failed_with_its_card_and_not_trained_again(tmp_path: Path, killed: Killed) -> None:
    """As if its worker and the automations did their part, of which the last comes late."""
    killed.kill(worker=False)
    killed.become(Crashed(message="Flow run process exited with non-zero status code -9."))
    killed.become(Crashed(name=RESTART_PENDING))

    message = killed.wait_until_saved()
    killed.become(Crashed(name=RESTART_PENDING))
    again = killed.wait_until_saved()

    out, page = str(tmp_path / "out"), page_of(str(killed.run_id), "copy")
    assert "rank 0 of 1 failed: ValueError: no such layer" in message
    assert again == message
    assert "# copy: Failed" in page
    assert "rank 0 of 1 failed: ValueError: no such layer" in page
    assert 'raise ValueError("no such layer")' in page
    assert (tmp_path / "kept" / "state.txt").read_text() == "state"
    assert verify_receipt(out, None).problems == ()
    assert read_receipt(out, None).state == "Failed"
    assert AWAITING_RESTART not in killed.states


@pytest.mark.parametrize("killed", ["outputs"], indirect=True)
def test_it_is_failed_at_once_if_its_worker_ends_too(killed: Killed) -> None:
    """By the event of a Crashed state, it would be started again."""
    killed.kill(worker=True)

    killed.wait_until_saved()

    assert {*killed.states} <= {"Scheduled", "Pending", "Running", "Failed"}
