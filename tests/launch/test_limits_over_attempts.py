"""What stops a training over several attempts: how long each reason holds, and what is kept then.

Two machines are two folders for workspaces that share the stores.
"""

import os
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.jobs import make_job
from tests.launch.test_stop_requests import interrupt
from trainjob.attempts import Earlier, Trained
from trainjob.errors import RunLost, TrainingFailed
from trainjob.events import (
    AttemptStarted,
    Event,
    Noted,
    RankOutput,
    Saved,
    listening,
)
from trainjob.job import TrainingJob
from trainjob.launch import devices
from trainjob.launch.card_leases import leased_cards
from trainjob.metrics.patterns import MetricPatterns
from trainjob.metrics.recorder import MetricsRecorder
from trainjob.plan import program_of
from trainjob.saving import add_metrics, upload_all
from trainjob.storage.receipt import OutputState, read_receipt
from trainjob.storage.settings import StoreSettings
from trainjob.training import train_job
from trainjob.workspace import Workspace

# Nobody else's: the end of a run kills all that bears its mark on this machine.
RUN_ID = str(uuid4())
START = """\
import os, pathlib, signal, sys, time
from trainjob.progress import should_stop
out = pathlib.Path(os.environ["TRAIN_URL"])
attempt = len([*pathlib.Path().glob("begun-*")])
pathlib.Path(f"begun-{attempt}").touch()
should_stop()
def until_asked():
    while not should_stop():
        time.sleep(0.01)
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)\n"
LOSS = [{"name": "loss", "regex": "loss=([0-9.]+)"}]
TARGET = {"metric": "loss", "at_most": 0.5}
USED_UP = Earlier(num_processes=1, num_attempts=1, num_restarts=1, trained_s=61)


class Run:
    """A run on one machine after the other, and what its watchers are told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        self._monkeypatch = monkeypatch
        self._folder = folder
        self._settings = StoreSettings()
        stores = {
            "checkpoints": {"url": str(folder / "checkpoints")},
            "logs": {"url": str(folder / "logs")},
            "metrics": LOSS,
        }
        self.job = TrainingJob.parse(make_job(folder, **stores | changes))
        self.events: list[Event] = []

    @property
    def workspace(self) -> Workspace:
        return Workspace.of_run(RUN_ID)

    def train(self, script: str, earlier: Earlier | None = None, machine: str = "a") -> Trained:
        self._monkeypatch.setenv("TRAINJOB_WORKDIR", str(self._folder / machine))
        shutil.rmtree(self.workspace.code, ignore_errors=True)
        self.workspace.code.mkdir(parents=True)
        (self.workspace.code / "train.py").write_text(START + script)
        with listening(self.events.append):
            return train_job(
                self.job,
                program_of(self.job, self.workspace),
                self._settings,
                MetricsRecorder(MetricPatterns(self.job.metrics)),
                run_id=RUN_ID,
                earlier=earlier or Earlier(),
            )

    def lose(self, script: str, earlier: Earlier | None = None, machine: str = "a") -> None:
        """Train until the machine is lost, and forget what was told by then."""
        with pytest.raises(TrainingFailed):
            self.train(script + "sys.exit(3)\n", earlier, machine)
        self.events.clear()

    def upload(self, state: OutputState) -> dict[str, str]:
        """Upload the outputs, and return the files of the script that their store has then."""
        with listening(self.events.append):
            add_metrics(self.job, self.workspace)
            upload_all(self.job, RUN_ID, self._settings, {}, state)
        found = {file.name: file for file in (self._folder / "out").glob("*.pt")}
        return {name: file.read_text() for name, file in sorted(found.items())}

    def told(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def notes(self) -> list[str]:
        return [event.text for event in self.told(Noted)]


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(**limits: Any) -> Run:
        changes = limits.pop("changes", {})
        return Run(tmp_path, monkeypatch, limits=limits, **changes)

    return make


@pytest.mark.parametrize("begin", ["", "until_asked()\n"], ids=["at once", "while it saves"])
@pytest.mark.parametrize("has_checkpoints", [False, True])
def test_a_target_of_an_attempt_that_failed_does_not_stop_the_next(
    make_run: Any, begin: str, has_checkpoints: bool
) -> None:
    run = make_run(auto_restart=1, target=TARGET)
    saved = "(pathlib.Path(os.environ['TRAINJOB_CHECKPOINT_DIR']) / 'state').write_text('50')\n"
    first = (saved if has_checkpoints else "") + f"print('loss=0.1', flush=True)\n{begin}{KILLED}"
    script = (
        "(out / 'model.pt').write_text('half' if not attempt else 'whole')\n"
        f"if not attempt:\n{indented(first)}"
        "print('loss=0.2', flush=True)\nuntil_asked()\n"
    )

    trained = run.train(script)

    assert trained.result.reason == "target"
    assert "loss=0.2" in (run.workspace.attempt_logs(1) / "rank-0.log").read_text()
    assert run.upload("TargetReached") == {"model.pt": "whole"}


def test_an_attempt_that_does_not_reach_the_target_again_goes_on_to_its_end(make_run: Any) -> None:
    run = make_run(auto_restart=1, target=TARGET)
    first = f"print('loss=0.1', flush=True)\n{KILLED}"

    trained = run.train(f"if not attempt:\n{indented(first)}print('loss=0.9', flush=True)\n")

    assert trained.result.reason == "finished"


def test_a_person_stops_all_attempts(make_run: Any) -> None:
    run = make_run(auto_restart=1)

    def stop(event: Event) -> None:
        if isinstance(event, RankOutput) and "ready" in event.lines:
            interrupt()

    with listening(stop), pytest.raises(KeyboardInterrupt):
        run.train(f"print('ready', flush=True)\nuntil_asked()\n{KILLED}")

    assert len(run.told(AttemptStarted)) == 1


def test_auto_stop_stops_all_attempts(make_run: Any) -> None:
    run = make_run(auto_restart=1, auto_stop="12s")

    with pytest.raises(TrainingFailed, match="SIGKILL"):
        run.train(f"until_asked()\n{KILLED}")

    assert len(run.told(AttemptStarted)) == 1


def writing(name: str, text: str) -> str:
    return f"(out / {name!r}).write_text({text!r})\nprint('loss=0.7', flush=True)\n"


def saving(state: str) -> str:
    return (
        f"(pathlib.Path(os.environ['TRAINJOB_CHECKPOINT_DIR']) / 'state').write_text({state!r})\n"
    )


@pytest.mark.parametrize("machine", ["a", "b"])
@pytest.mark.parametrize("checkpoint", ["", saving("50")], ids=["without", "with checkpoints"])
def test_a_run_whose_time_is_used_up_begins_no_attempt_and_keeps_all(
    make_run: Any, tmp_path: Path, machine: str, checkpoint: str
) -> None:
    run = make_run(auto_stop="60s", auto_restart=1, target=TARGET)
    run.lose(writing("epoch-50.pt", "weights") + checkpoint)
    logs = {file for file in (tmp_path / "logs").rglob("*") if file.is_file()}

    with pytest.raises(RunLost, match=r"the 1m of limits.auto_stop are used up"):
        run.train("", USED_UP, machine)
    stored = run.upload("Failed")

    assert run.told(AttemptStarted) == []
    assert stored == {"epoch-50.pt": "weights"}
    assert {file for file in (tmp_path / "logs").rglob("*") if file.is_file()} == logs
    assert [file.read_text() for file in (tmp_path / "checkpoints").glob("state")] == (
        ["50"] if checkpoint else []
    )
    assert [saved.missing for saved in run.told(Saved)] == [()] * 2


def test_a_run_whose_time_is_used_up_waits_for_no_card(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "davinci0").touch()  # SIMULATED: nothing computes on it
    monkeypatch.setattr(devices, "DEV_DIR", tmp_path / "dev")
    monkeypatch.setenv("TRAINJOB_CARDS_DIR", str(tmp_path / "cards"))
    limits = {"auto_stop": "60s", "auto_restart": 1, "wait_for_cards": "1s"}
    run = make_run(**limits, changes={"resources": {"device": "npu"}})

    with (
        leased_cards("npu", 1, os.environ, run_id="another", timeout_s=0),
        pytest.raises(RunLost),
    ):
        run.train("", USED_UP)


def test_the_attempt_that_auto_stop_cuts_off_takes_nothing_from_the_one_before(
    make_run: Any, tmp_path: Path
) -> None:
    run = make_run(auto_stop="20s", auto_restart=1)
    first = writing("epoch-1.pt", "first") + writing("epoch-50.pt", "first") + KILLED
    second = writing("epoch-1.pt", "second") + "until_asked()\n"

    trained = run.train(f"if not attempt:\n{indented(first)}{second}")

    assert (trained.attempt, trained.result.reason) == (1, "auto_stop")
    assert run.upload("AutoStopped") == {"epoch-1.pt": "second", "epoch-50.pt": "first"}
    assert read_receipt(str(tmp_path / "out"), None).earlier == ("epoch-50.pt",)
    assert "train_url: 1 file of these is of an earlier attempt: epoch-50.pt" in run.notes


def indented(lines: str) -> str:
    return "".join(f"    {line}\n" for line in lines.splitlines())
