"""How a run ends that does not end well, whatever happens while that is saved and told."""

import errno
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from prefect import State
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.runtime import flow_run
from prefect.states import AwaitingRetry, Cancelling

from flows.training_job import training_job
from tests.e2e.watched_runs import page_of
from tests.jobs import COPY_SCRIPT, make_job
from tests.waiting import PATIENCE_S
from trainjob.events import (
    Event,
    RankOutput,
    RunEnded,
    StageFailed,
    StageStarted,
    Transferred,
    listening,
)
from trainjob.job import TrainingJob
from trainjob.report import RunReport
from trainjob.storage.own_files import SUCCESS
from trainjob.storage.receipt import read_receipt, verify_receipt
from trainjob.workspace import Workspace

pytestmark = pytest.mark.usefixtures("prefect_server")

WRITE = """\
import os, pathlib
out = pathlib.Path(os.environ["TRAIN_URL"])
(out / "model.txt").write_text("weights")
"""
FAIL = WRITE + "raise ValueError('no such layer')\n"


class Ended:
    """What became of a run: its state, and what its watchers were told at its end."""

    def __init__(self, state: State[Any], reports: list[RunReport]) -> None:
        self.state = state
        self.message = state.message or ""
        self.run_id = str(state.state_details.flow_run_id)
        [self.report] = reports

    @property
    def page(self) -> str:
        return page_of(self.run_id, "copy")


def run(job: dict[str, Any], act: Callable[[Event], None] = lambda _: None) -> Ended:
    """Run a job in this thread to its end, and let `act` do something at its events."""
    reports: list[RunReport] = []

    def keep(event: Event) -> None:
        if isinstance(event, RunEnded):
            reports.append(event.report)

    with listening(keep), listening(act):
        state = cast(State[Any], training_job(TrainingJob.parse(job), return_state=True))
    return Ended(state, reports)


class Once:
    """Does something the first time that a copy of this name is told of, after a stage failed."""

    def __init__(self, label: str, do: Callable[[], None], stage: str | None = None) -> None:
        self._label = label
        self._do = do
        self._stage = stage
        self._is_due = stage is None
        self.is_done = False

    def __call__(self, event: Event) -> None:
        self._is_due |= isinstance(event, StageFailed) and event.stage == self._stage
        if self._is_due and isinstance(event, Transferred) and event.label == self._label:
            self._is_due, self.is_done = False, True
            self._do()


def press_ctrl_c() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def cancel_and_terminate() -> None:
    """As a worker ends a run that is cancelled in the UI."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(str(flow_run.id)), Cancelling())
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def retry(run_id: str) -> State[Any]:
    """Start a run again as `prefect flow-run retry` does, and return how it ends."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run_id), AwaitingRetry(), force=True)
        again = client.read_flow_run(UUID(run_id))
    return cast(State[Any], run_flow(training_job, flow_run=again, return_type="state"))


def two_outputs(folder: Path) -> list[dict[str, str]]:
    return [{"name": name, "url": str(folder / name)} for name in ("a", "b")]


@pytest.mark.parametrize(("written", "empty"), [("a", "b"), ("b", "a")])
def test_an_output_that_fails_the_run_keeps_no_other_from_being_saved_and_told(
    tmp_path: Path, written: str, empty: str
) -> None:
    script = WRITE.replace("TRAIN_URL", written.upper())

    ended = run(make_job(tmp_path, script, outputs=two_outputs(tmp_path)))

    out = tmp_path / written
    assert ended.state.is_failed()
    assert f"the output {empty!r}" in ended.message
    assert not (out / SUCCESS).exists()
    assert verify_receipt(str(out), None).problems == ()
    assert read_receipt(str(out), None).state == "Failed"
    line = f"{written}: 1 file, 7 B at {out}"
    assert line in ended.report.saved
    for told_of in (ended.message, ended.page):
        assert line in told_of


def test_a_restarted_attempt_that_fails_at_once_loses_nothing_of_the_first(tmp_path: Path) -> None:
    script = (
        "import pathlib\n"
        "if pathlib.Path('begun').exists():\n"
        "    raise ValueError('no such layer')\n"
        "pathlib.Path('begun').touch()\n"
        f"{WRITE}"
        "import signal\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    ended = run(make_job(tmp_path, script, limits={"auto_restart": 1}))

    previous = Workspace.of_run(ended.run_id).previous
    assert ended.state.is_failed()
    assert len(ended.report.attempts) == 2
    assert (tmp_path / "out" / "model.txt").read_text() == "weights"
    assert read_receipt(str(tmp_path / "out"), None).earlier == ("model.txt",)
    assert verify_receipt(str(tmp_path / "out"), None).problems == ()
    assert (previous / "attempt-0" / "train_url" / "model.txt").exists()
    assert f"is in {previous}, a folder each" in ended.page


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_fault_of_the_machine_between_two_attempts_loses_nothing_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stopped: bool
) -> None:
    start = Workspace.start_attempt
    kill = f"{WRITE}import signal\nos.kill(os.getpid(), signal.SIGKILL)\n"

    def once(workspace: Workspace, *args: Any, **kwargs: Any) -> int:
        if workspace.next_attempt():
            raise OSError(errno.ENOSPC, "No space left on device")
        return start(workspace, *args, **kwargs)

    monkeypatch.setattr(Workspace, "start_attempt", once)

    stopped = Once("verify train_url", press_ctrl_c if is_stopped else lambda: None)

    ended = run(make_job(tmp_path, kill, limits={"auto_restart": 1}), stopped)

    assert stopped.is_done
    assert ended.state.name == ("Cancelled" if is_stopped else "Failed")
    assert "No space left on device" in ended.page
    assert (tmp_path / "out" / "model.txt").read_text() == "weights"
    assert read_receipt(str(tmp_path / "out"), None).state == "Failed"


@pytest.mark.parametrize("stop", [press_ctrl_c, cancel_and_terminate])
def test_a_failed_run_that_is_stopped_while_it_saves_still_saves_and_says_why_it_failed(
    tmp_path: Path, stop: Callable[[], None]
) -> None:
    stopped = Once("verify train_url", stop)

    ended = run(make_job(tmp_path, FAIL), stopped)

    out = tmp_path / "out"
    assert stopped.is_done
    assert ended.state.name == "Cancelled"
    assert verify_receipt(str(out), None).problems == ()
    assert read_receipt(str(out), None).state == "Failed"
    assert ended.report.state == "Cancelled"
    assert ended.report.failure is not None
    for told_of in (ended.message, ended.page):
        assert "ValueError: no such layer" in told_of
        assert f"train_url: 1 file, 7 B at {out}" in told_of


def test_a_run_that_fails_over_its_outputs_and_is_stopped_says_both(tmp_path: Path) -> None:
    script = WRITE.replace("TRAIN_URL", "A")
    stopped = Once("verify a", press_ctrl_c, stage="upload_outputs")

    ended = run(make_job(tmp_path, script, outputs=two_outputs(tmp_path)), stopped)

    assert stopped.is_done
    assert ended.state.name == "Cancelled"
    assert "the output 'b'" in ended.message
    assert verify_receipt(str(tmp_path / "a"), None).problems == ()


def test_the_reason_of_a_failure_is_on_its_page_before_anything_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.run_end._AHEAD_TIMEOUT_S", PATIENCE_S)  # for a busy machine
    pages: list[str] = []

    def look() -> None:
        pages.append(page_of(str(flow_run.id), "copy"))

    ended = run(make_job(tmp_path, FAIL), Once("verify train_url", look))

    assert "ValueError: no such layer" in pages[0]
    assert "is being saved" in pages[0]
    assert "is being saved" not in ended.page


@pytest.mark.parametrize("stop", [press_ctrl_c, cancel_and_terminate])
def test_a_second_stop_ends_the_saving_and_says_so(
    tmp_path: Path, stop: Callable[[], None]
) -> None:
    num_stops = 0

    def stop_twice(event: Event) -> None:
        nonlocal num_stops
        if num_stops < 2 and isinstance(event, Transferred) and event.label == "verify train_url":
            num_stops += 1
            stop()

    ended = run(make_job(tmp_path, FAIL), stop_twice)

    assert num_stops == 2
    assert ended.state.name == "Cancelled"
    assert "not everything was saved" in ended.message
    assert str(Workspace.of_run(ended.run_id).root) in ended.page


def test_a_run_that_is_stopped_while_it_tells_of_its_success_keeps_it_for_a_retry(
    tmp_path: Path,
) -> None:
    reports: list[RunReport] = []

    def stop(event: Event) -> None:
        if isinstance(event, RunEnded):
            reports.append(event.report)
            if len(reports) == 1:
                raise KeyboardInterrupt

    with listening(stop):
        state = cast(
            State[Any],
            training_job(TrainingJob.parse(make_job(tmp_path)), return_state=True),
        )
    page = page_of(reports[-1].run_id, "copy")
    found = verify_receipt(str(tmp_path / "out"), None)
    retried = retry(reports[-1].run_id)

    assert state.name == reports[-1].state == "Cancelled"
    assert "# copy: Cancelled" in page
    assert "its finished result" in page
    assert found.is_result
    assert retried.name == "Completed"
    assert verify_receipt(str(tmp_path / "out"), None).is_result


def test_a_run_that_is_killed_while_its_copies_are_removed_keeps_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = COPY_SCRIPT + "(args.train_url / 'model.txt').write_text('weights')\n"
    metric = {"name": "result", "regex": "result ([0-9]+)"}
    killed: list[str] = []

    def be_killed(workspace: Workspace, **_: Any) -> None:
        (workspace.output_dir("train_url") / "model.txt").unlink()
        killed.append(workspace.root.name)
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(Workspace, "drop_copies", be_killed)
        training_job(
            TrainingJob.parse(make_job(tmp_path, script, metrics=[metric])), return_state=True
        )

    retried = retry(killed[0])

    assert retried.name == "Completed"
    assert (tmp_path / "out" / "model.txt").read_text() == "weights"
    assert verify_receipt(str(tmp_path / "out"), None).is_result


@pytest.mark.parametrize("stop", [press_ctrl_c, cancel_and_terminate])
def test_a_run_that_is_stopped_when_all_is_told_has_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Callable[[], None]
) -> None:
    """Copies are removed last, so that no upload finds half of its folder gone."""
    monkeypatch.setattr(Workspace, "drop_copies", lambda *_, **__: stop())

    ended = run(make_job(tmp_path))

    assert ended.report.state == "Completed"
    assert "# copy: Completed" in ended.page
    assert verify_receipt(str(tmp_path / "out"), None).is_result


def test_a_run_that_is_cancelled_before_it_trains_leaves_the_checkpoints_alone(
    tmp_path: Path,
) -> None:
    job = make_job(tmp_path, WRITE, checkpoints={"url": str(tmp_path / "checkpoints")})

    def stop(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "fetch_code":
            press_ctrl_c()

    ended = run(job, stop)

    assert ended.state.name == "Cancelled"
    assert ended.message.endswith("Saved: there was nothing to save")
    assert not (tmp_path / "checkpoints").exists()


def test_a_run_that_is_stopped_says_in_its_state_what_was_saved(tmp_path: Path) -> None:
    script = f"{WRITE}\nimport time\nprint('ready', flush=True)\ntime.sleep(60)\n"

    def stop(event: Event) -> None:
        if isinstance(event, RankOutput):
            press_ctrl_c()

    ended = run(make_job(tmp_path, script, limits={"grace": "1s"}), stop)

    assert ended.state.name == "Cancelled"
    assert ended.message == (
        f"stopped by the person who started it. Saved: train_url: 1 file, 7 B at {tmp_path / 'out'}"
    )
