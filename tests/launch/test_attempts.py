"""Attempts with real ranks: what is started again, from where, and how often."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import make_job
from trainjob.attempts import Attempts, Earlier, Trained
from trainjob.errors import TrainingFailed
from trainjob.events import AttemptEnded, AttemptStarted, Event, MetricReported, listening
from trainjob.job import TrainingJob
from trainjob.launch.training import Control
from trainjob.metrics.patterns import MetricPatterns
from trainjob.metrics.recorder import MetricsRecorder
from trainjob.plan import program_of
from trainjob.workspace import Workspace

COUNT = """\
import os, pathlib, signal, sys
folder = pathlib.Path(os.environ["TRAINJOB_CHECKPOINT_DIR"])
number = len(list(folder.glob("began-*")))
(folder / f"began-{number}").write_text("")
out = pathlib.Path(os.environ["TRAIN_URL"])
(out / f"attempt-{number}.txt").write_text("")
"""
NOTHING = Earlier()
KILLED = "os.kill(os.getpid(), signal.SIGKILL)\n"


class Run:
    """A job that is trained in attempts, and the events of it."""

    def __init__(self, folder: Path, script: str, **changes: Any) -> None:
        self.job = TrainingJob.parse(make_job(folder, script, **changes))
        self.workspace = Workspace(folder / "workspace")
        self.events: list[Event] = []
        shutil.copytree(folder / "code", self.workspace.code)

    def train(self, earlier: Earlier = NOTHING) -> Trained:
        attempts = Attempts(
            self.job,
            self.workspace,
            program_of(self.job, self.workspace),
            run_id=f"test-{self.workspace.root}",
            earlier=earlier,
            control=Control(),
            recorder=MetricsRecorder(MetricPatterns(self.job.metrics)),
        )
        with listening(self.events.append):
            return attempts.run()

    @property
    def started(self) -> list[AttemptStarted]:
        return [event for event in self.events if isinstance(event, AttemptStarted)]

    @property
    def ended(self) -> list[AttemptEnded]:
        return [event for event in self.events if isinstance(event, AttemptEnded)]


MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(script: str, **limits: Any) -> Run:
        metrics = limits.pop("metrics", [])
        return Run(tmp_path, script, limits=limits, metrics=metrics)

    return make


def test_a_killed_rank_is_started_again_and_finds_its_files(make_run: MakeRun) -> None:
    run = make_run(COUNT + "if number < 2: " + KILLED, auto_restart=2)

    trained = run.train()

    assert trained.attempt == 2
    assert [event.will_restart for event in run.ended] == [True, True, False]
    assert [event.reason for event in run.ended] == [None, None, "finished"]
    assert "SIGKILL" in str(run.ended[0].error)
    outputs = sorted(file.name for file in run.workspace.output_dir("train_url").iterdir())
    assert outputs == [f"attempt-{number}.txt" for number in range(3)]
    assert all((run.workspace.attempt_logs(number) / "rank-0.log").exists() for number in range(3))


def test_the_restarts_are_counted_and_end(make_run: MakeRun) -> None:
    run = make_run(COUNT + KILLED, auto_restart=1)

    with pytest.raises(TrainingFailed, match="SIGKILL"):
        run.train()

    assert [event.will_restart for event in run.ended] == [True, False]


def test_restarts_of_earlier_processes_count(make_run: MakeRun) -> None:
    run = make_run(COUNT + KILLED, auto_restart=2)

    with pytest.raises(TrainingFailed):
        run.train(Earlier(num_attempts=1, num_restarts=1))

    assert [event.attempt for event in run.started] == [1, 2]


@pytest.mark.parametrize(
    "end", ["raise ValueError('mine')", "sys.exit(3)", "import no_such_module"]
)
def test_what_the_script_did_wrong_is_not_tried_again(make_run: MakeRun, end: str) -> None:
    run = make_run(COUNT + end, auto_restart=3)

    with pytest.raises(TrainingFailed):
        run.train()

    assert len(run.started) == 1


def test_any_failure_is_tried_again_if_the_job_says_so(make_run: MakeRun) -> None:
    script = COUNT + "if not number: raise ValueError('mine')"
    run = make_run(script, auto_restart=1, restart_on="any")

    assert run.train().attempt == 1


def test_an_attempt_without_checkpoints_starts_with_empty_outputs(make_run: MakeRun) -> None:
    script = """\
import os, pathlib, signal
out = pathlib.Path(os.environ["TRAIN_URL"])
assert not list(out.iterdir())
(out / "half.txt").write_text("")
marker = pathlib.Path("marker")
if not marker.exists():
    marker.write_text("")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run = make_run(script, auto_restart=1)

    run.train()

    assert (run.workspace.previous_outputs(0) / "train_url" / "half.txt").exists()


def test_the_attempt_knows_the_step_it_goes_on_from(make_run: MakeRun) -> None:
    script = """\
import os, signal
from trainjob.checkpoint import latest, save
if latest() is None:
    save(7, {"a": 1})
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run = make_run(script, auto_restart=1)

    run.train()

    assert [event.resumed_from for event in run.started] == [None, 7]


def test_the_metrics_of_all_attempts_are_kept(make_run: MakeRun) -> None:
    script = COUNT + "print(f'loss={number}.5', flush=True)\nif not number: " + KILLED
    metrics = [{"name": "loss", "regex": "loss=([0-9.]+)"}]
    run = make_run(script, auto_restart=1, metrics=metrics)

    run.train()

    told = [event.metrics for event in run.events if isinstance(event, MetricReported)]
    assert told == [{"loss": 0.5}, {"loss": 1.5}]
    lines = run.workspace.metrics_dir(1) / "metrics.jsonl"
    assert len(lines.read_text().splitlines()) == 2


def test_the_time_of_all_attempts_counts_for_auto_stop(make_run: MakeRun) -> None:
    script = COUNT + "import time\nif not number: time.sleep(0.6); " + KILLED + "time.sleep(600)"
    run = make_run(script, auto_restart=1, auto_stop="12s", grace="1s")

    trained = run.train()

    assert trained.result.reason == "auto_stop"
    assert trained.result.seconds >= 12
    order = json.loads((run.workspace.attempt_logs(1) / "records" / "order.json").read_text())
    assert 0 < order["auto_stop_s"] <= 11.4


def trained_before(run: Run, attempt: int, seconds: int) -> None:
    """Leave what an attempt leaves whose process was killed."""
    records = run.workspace.attempt_logs(attempt) / "records"
    records.mkdir(parents=True)
    for name, age_s in (("order.json", 30 + seconds), ("progress-0.jsonl", 30)):
        (records / name).write_text("{}")
        os.utime(records / name, (time.time() - age_s,) * 2)
    os.utime(records, (0, 0))
    os.utime(records.parent, (0, 0))


def test_the_time_of_killed_processes_counts_for_auto_stop(make_run: MakeRun) -> None:
    run = make_run(
        COUNT + "import time; time.sleep(60)", auto_restart=1, auto_stop="1m", grace="1s"
    )
    trained_before(run, attempt=0, seconds=70)

    trained = run.train(Earlier(num_restarts=1))

    assert trained.result.reason == "auto_stop"
    assert 70 <= trained.result.seconds < 110


def test_the_time_on_another_machine_counts_for_auto_stop(make_run: MakeRun) -> None:
    run = make_run(COUNT + "import time; time.sleep(60)", auto_stop="1m", grace="1s")

    trained = run.train(Earlier(num_attempts=1, num_restarts=1, trained_s=70))

    assert trained.result.reason == "auto_stop"
    assert 70 <= trained.result.seconds < 110


def test_the_time_before_a_retry_of_a_person_does_not_count_after_a_kill(
    make_run: MakeRun,
) -> None:
    run = make_run(COUNT, auto_stop="1m")
    trained_before(run, attempt=0, seconds=70)
    trained_before(run, attempt=1, seconds=20)
    told = Earlier(2, num_attempts=2, num_restarts=1, trained_s=5, since_attempt=1)

    trained = run.train(told)

    assert trained.result.reason == "finished"
    assert 20 <= trained.result.seconds < 70


def test_a_killed_process_that_began_no_attempt_adds_no_time(make_run: MakeRun) -> None:
    run = make_run(COUNT, auto_stop="1m")
    trained_before(run, attempt=0, seconds=70)

    trained = run.train(Earlier(2, num_attempts=1, num_restarts=1, since_attempt=1))

    assert trained.result.reason == "finished"
    assert trained.result.seconds < 60
