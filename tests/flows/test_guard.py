"""The small process beside a flow, which becomes the finisher when the flow is gone."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.settings import PREFECT_HOME
from prefect.states import Running

from flows import guarding
from flows.guarding import Finisher, Order, home_that_stays
from flows.training_job import training_job
from tests.e2e.watched_runs import page_of
from tests.jobs import make_job
from tests.processes import marked_processes
from tests.waiting import wait_until
from trainjob.events import AttemptStarted, MetricsSummarised
from trainjob.job import TrainingJob
from trainjob.launch.supervision import _kill_marked
from trainjob.metrics.summary import MetricSummary
from trainjob.run_record import RunRecord
from trainjob.storage.receipt import read_receipt

ROOT = Path(__file__).parents[2]
MAX_MEMORY_KB = 20_000
Begin = Callable[..., tuple[RunRecord, Finisher]]


@pytest.fixture
def begin(tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Make a run that trains, as the process of a worker has it, and end what guards it."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("PREFECT_HOME", str(PREFECT_HOME.value()))
    finishers: list[Finisher] = []

    def make(**changes: Any) -> tuple[RunRecord, Finisher]:
        job = make_job(tmp_path, checkpoints={"url": str(tmp_path / "kept")}, **changes)
        with get_client(sync_client=True) as client:
            run = client.create_flow_run(training_job, parameters={"job": job}, state=Running())
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(run.id))
        record = RunRecord(str(run.id), "copy", TrainingJob.parse(job))
        record.note(AttemptStarted(record.workspace.start_attempt(("train_url",)), None))
        (record.workspace.output_dir("train_url") / "model.txt").write_text("weights")
        (record.workspace.checkpoints / "state.txt").write_text("state")
        finisher = Finisher(record)
        finisher.lock = os.open(record.workspace.root / "lock", os.O_RDWR | os.O_CREAT)
        finishers.append(finisher)
        return record, finisher

    yield make
    for finisher in finishers:
        assert finisher.lock is not None
        os.close(finisher.lock)
        if finisher.process is not None:
            finisher.process.kill()  # it would wait for the last word of a worker
            finisher.process.communicate()


def begin_again(record: RunRecord) -> None:
    """Do what a worker of another machine does."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(record.run_id), Running(), force=True)


def vanish(finisher: Finisher) -> None:
    """Do what the end of the flow process does to the pipe that it holds."""
    assert finisher.process is not None
    assert finisher.process.stdin is not None
    finisher.process.stdin.close()


def num_artifacts(record: RunRecord) -> int:
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(record.run_id)]))
    with get_client(sync_client=True) as client:
        return len(client.read_artifacts(artifact_filter=of_run))


def _takes(status: Path, signum: signal.Signals) -> bool:
    """Say whether a process has a handler for a signal, by its status in /proc."""
    [caught] = re.findall(r"SigCgt:\s+(\w+)", status.read_text())
    return bool(int(caught, 16) >> (signum - 1) & 1)


def test_a_guard_is_small_is_found_by_the_mark_and_outlives_what_ends_the_ranks(
    begin: Begin,
) -> None:
    record, finisher = begin()
    finisher.keep()
    assert finisher.process is not None
    status = Path(f"/proc/{finisher.process.pid}/status")
    wait_until(lambda: _takes(status, signal.SIGTERM))

    _kill_marked(record.run_id)
    finisher.process.send_signal(signal.SIGTERM)
    finisher.keep()

    assert list(marked_processes(record.run_id)) == [finisher.process.pid]
    [peak_kb] = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
    assert int(peak_kb) <= MAX_MEMORY_KB


def test_a_guard_ends_with_its_run(begin: Begin) -> None:
    record, finisher = begin()
    finisher.keep()
    guard = finisher.process

    finisher.dismiss()

    assert guard is not None
    assert guard.returncode == 0
    assert not (record.workspace.logs / "finisher.log").exists()


def test_a_guard_that_was_killed_is_missed_by_no_run_that_is_stopped(
    tmp_path: Path, begin: Begin
) -> None:
    _, finisher = begin()
    finisher.keep()
    assert finisher.process is not None
    finisher.process.kill()
    finisher.process.wait()

    assert finisher.start()
    assert finisher.wait()
    assert read_receipt(str(tmp_path / "out"), None).state == "Cancelled"


def test_what_a_killed_flow_left_is_saved_as_it_said_last(tmp_path: Path, begin: Begin) -> None:
    record, finisher = begin()
    finisher.keep()
    assert finisher.process is not None
    assert finisher.process.stdin is not None
    finisher.process.stdin.write(b'k999 {"run_id": "cut')

    vanish(finisher)

    wait_until(lambda: num_artifacts(record))
    assert read_receipt(str(tmp_path / "out"), None).state == "Crashed"
    assert (tmp_path / "kept" / "state.txt").read_text() == "state"


def test_how_a_flow_has_ended_that_is_gone_is_not_made_up(begin: Begin) -> None:
    """It may have been killed, have crashed in native code, or have ended itself."""
    record, finisher = begin()
    finisher.keep()

    vanish(finisher)

    wait_until(lambda: num_artifacts(record))
    page = page_of(record.run_id, "copy")
    assert "its process ended without a word" in page
    assert "SIGKILL" not in page


def test_a_killed_flow_whose_run_another_process_has_begun_touches_nothing_of_it(
    tmp_path: Path, begin: Begin
) -> None:
    record, finisher = begin()
    finisher.keep()
    begin_again(record)

    vanish(finisher)

    assert finisher.process is not None
    assert finisher.process.wait() == 0
    assert num_artifacts(record) == 0
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "kept").exists()


def test_of_a_killed_flow_that_is_started_again_that_is_saved_which_it_goes_on_from(
    tmp_path: Path, begin: Begin
) -> None:
    record, finisher = begin()
    finisher.is_restartable = True
    finisher.keep()

    vanish(finisher)

    assert finisher.process is not None
    assert finisher.process.wait() == 0
    assert num_artifacts(record) == 0
    assert (tmp_path / "out" / "model.txt").read_text() == "weights"
    assert not (tmp_path / "out" / "_trainjob" / "receipt.json").exists()
    assert (tmp_path / "kept" / "state.txt").read_text() == "state"


def test_code_that_goes_with_the_flow_is_kept_for_what_finishes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone, root = tmp_path / "clone", tmp_path / "workspace"
    for package in ("blocks", "flows", "tasks", "trainjob"):
        shutil.copytree(ROOT / package, clone / package)
    monkeypatch.setattr(guarding, "_HOME", clone)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    home = home_that_stays(root)
    shutil.rmtree(clone)

    command = [sys.executable, "-c", "import flows.finisher as f; print(f.__file__)"]
    found = subprocess.run(command, cwd=home, check=True, capture_output=True, text=True)
    assert Path(found.stdout.strip()).is_relative_to(root)


def test_code_that_stays_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    assert home_that_stays(tmp_path / "workspace") == ROOT
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_whose_metric_is_no_number_is_finished_too(begin: Begin, value: float) -> None:
    record, finisher = begin()
    record.note(MetricsSummarised((MetricSummary("loss", value, 3),)))

    order = Order.model_validate_json(finisher._order().model_dump_json())

    assert repr(order.report.metrics[0].last) == repr(value)
