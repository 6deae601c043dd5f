import contextvars
import json
import math
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import Event as TensorBoardEvent
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_ndarray

from tests.waiting import wait_until
from trainjob.events import Event, MetricReported, RankOutput, StepReported, emit, listening
from trainjob.launch.launch import Launch
from trainjob.launch.training import run_training
from trainjob.metrics.patterns import MetricPatterns
from trainjob.metrics.recorder import MetricsRecorder


@dataclass(frozen=True)
class Named:
    name: str
    regex: str


LOSS = Named("loss", r"loss[= ]+(\S+)")


class Run:
    """A run on local folders: what it emitted, and what it left."""

    def __init__(self, root: Path, *patterns: Named) -> None:
        self.root = root
        self.recorder = MetricsRecorder(
            MetricPatterns(patterns or [LOSS]), clock=lambda: 1.7e9, poll_s=0.05
        )
        self.said: list[MetricReported] = []

    @contextmanager
    def attempt(self, number: int = 0, resumed_from: int | None = None) -> Iterator[Path]:
        output = self.root / "out"
        if output.exists():
            output.rename(self.previous(number - 1))
        output.mkdir(parents=True)
        earlier = self.previous(number - 1) / "metrics" if number else None
        with (
            listening(self._note),
            self.recorder.recording(number, resumed_from, [output], self.folder, earlier),
        ):
            yield output

    def _note(self, event: Event) -> None:
        if isinstance(event, MetricReported):
            self.said.append(event)

    def previous(self, number: int) -> Path:
        return self.root / f"previous-{number}"

    @property
    def folder(self) -> Path:
        return self.root / "out" / "metrics"

    def lines(self) -> list[dict[str, Any]]:
        text = (self.folder / "metrics.jsonl").read_text()
        return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]

    def facts(self, *keys: str) -> list[tuple[Any, ...]]:
        return [tuple(line[key] for key in keys) for line in self.lines()]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def report(step: int, **metrics: float) -> None:
    emit(StepReported(0, step, 100, 1, metrics))


def write_scalars(folder: Path, tag: str, values: dict[int, float]) -> None:
    writer = EventFileWriter(str(folder))
    for step, value in values.items():
        part = Summary.Value(tag=tag, simple_value=value)
        writer.add_event(
            TensorBoardEvent(step=step, wall_time=1.6e9, summary=Summary(value=[part]))
        )
    writer.close()


def shown_by_tensorboard(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return what `tensorboard --logdir FOLDER` shows: run, tag, steps and values."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return {
        name: {
            tag: [
                (event.step, float(make_ndarray(event.tensor_proto)))
                for event in multiplexer.Tensors(name, tag)
            ]
            for tag in tags["tensors"]
        }
        for name, tags in multiplexer.Runs().items()
    }


def test_without_metrics_there_is_no_folder(run):
    with run.attempt():
        emit(RankOutput(0, ("nothing to see",)))
        report(1)
    run.recorder.write_plot("a run")

    assert not run.folder.exists()
    assert run.said == []
    assert run.recorder.summary() == ()
    assert run.recorder.plot() is None


def test_metrics_of_all_sources_are_told_and_kept(run):
    with run.attempt() as output:
        report(5, accuracy=0.5)
        emit(RankOutput(0, ("loss=0.25",)))
        write_scalars(output / "tb", "lr", {7: 0.1})
    run.recorder.write_plot("a run")

    assert run.said == [
        MetricReported({"accuracy": 0.5}, 5, "report"),
        MetricReported({"loss": 0.25}, 5, "regex"),
        MetricReported({"lr": 0.1}, 7, "tensorboard"),
    ]
    first, second, third = run.lines()
    assert first == {
        "time": "2023-11-14T22:13:20.000+00:00",
        "attempt": 0,
        "step": 5,
        "epoch": 1,
        "source": "report",
        "metrics": {"accuracy": 0.5},
    }
    assert "epoch" not in second
    assert third["time"].startswith("2020-09-13")
    assert run.recorder.latest == {"accuracy": 0.5, "loss": 0.25, "lr": 0.1}
    assert (run.folder / "metrics.png").read_bytes().startswith(b"\x89PNG")


def test_lines_are_there_while_the_training_runs(run):
    with run.attempt():
        report(1, accuracy=0.5)

        assert run.facts("step", "metrics") == [(1, {"accuracy": 0.5})]


def test_event_files_are_read_while_the_training_runs(run):
    with run.attempt() as output:
        write_scalars(output, "lr", {7: 0.1})

        wait_until(lambda: bool(run.said))

    assert run.said == [MetricReported({"lr": 0.1}, 7, "tensorboard")]


def test_tensorboard_shows_everything_and_nothing_twice(run):
    with run.attempt() as output:
        for step in (1, 2):
            report(step, accuracy=step / 4)
        write_scalars(output / "tb", "lr", {1: 0.5, 2: 0.25})

    assert shown_by_tensorboard(run.root / "out") == {
        "metrics": {"accuracy": [(1, 0.25), (2, 0.5)]},
        "tb": {"lr": [(1, 0.5), (2, 0.25)]},
    }


def test_a_metric_is_taken_from_the_first_rank_that_said_it(run):
    with run.attempt():
        emit(RankOutput(1, ("loss=1",)))
        emit(RankOutput(0, ("loss=2",)))
        emit(RankOutput(1, ("loss=3",)))
        emit(RankOutput(None, ("loss=4",)))

    assert [event.metrics["loss"] for event in run.said] == [1, 3]


def test_a_metric_that_is_printed_and_reported_is_one_curve(run):
    with run.attempt() as output:
        for step in (1, 2):
            report(step, loss=0.5)
            emit(RankOutput(0, ("loss=0.5",)))
        write_scalars(output, "loss", {1: 0.5, 2: 0.5})

    assert [event.source for event in run.said] == ["report", "report"]


def test_without_any_step_values_are_counted_over_all_attempts(tmp_path):
    run = Run(tmp_path, LOSS, Named("val", r"val=(\S+)"))
    with run.attempt():
        emit(RankOutput(0, ("loss=1", "loss=2", "loss=3 val=9")))
    with run.attempt(1, resumed_from=100):
        emit(RankOutput(0, ("loss=4",)))

    assert [event.metrics for event in run.said] == [
        {"loss": 1.0},
        {"loss": 2.0},
        {"loss": 3.0},
        {"val": 9.0},
        {"loss": 4.0},
    ]
    assert {event.step for event in run.said} == {None}  # watchers take no count for a step
    last_steps = {metric.name: metric.last_step for metric in run.recorder.summary()}
    assert last_steps == {"loss": 4, "val": 1}


def test_a_line_before_the_first_report_of_a_restart_has_the_step_it_resumed_from(run):
    with run.attempt():
        report(200)
    with run.attempt(1, resumed_from=150):
        emit(RankOutput(0, ("loss=1",)))
    with run.attempt(2, resumed_from=None):
        emit(RankOutput(0, ("loss=2",)))

    assert [event.step for event in run.said] == [150, None]


def test_values_that_are_no_json_are_texts_in_it(run):
    with run.attempt():
        report(1, loss=math.nan, a=math.inf, b=-math.inf)

    assert run.facts("metrics") == [({"loss": "NaN", "a": "Infinity", "b": "-Infinity"},)]
    [values] = shown_by_tensorboard(run.root / "out").values()
    assert math.isnan(values["loss"][0][1])
    assert values["a"] == [(1, math.inf)]


@pytest.mark.parametrize("value", [1e300, -1e300, 1e-320, 3.4028235677973366e38])
def test_values_beyond_a_float32_do_not_break_the_event_file(run, value):
    with run.attempt():
        report(1, big=value)

    assert run.facts("metrics") == [({"big": value},)]
    assert "big" in shown_by_tensorboard(run.root / "out")["metrics"]


@pytest.mark.parametrize("step", [2**63, -(2**63) - 1, 10**400])
def test_a_step_beyond_all_bounds_is_unknown(run, step):
    with run.attempt():
        report(step, loss=0.5)

    assert run.facts("step", "metrics") == [(None, {"loss": 0.5})]
    assert run.recorder.latest == {"loss": 0.5}


def test_after_a_restart_files_have_all_attempts_and_curves_what_counts(run):
    with run.attempt():
        for step in range(1, 11):
            report(step, loss=float(step))
    with run.attempt(1, resumed_from=4):
        for step in range(5, 8):
            report(step, loss=step + 0.5)
    run.recorder.write_plot("a run")

    attempts = [(0, step) for step in range(1, 11)] + [(1, step) for step in range(5, 8)]
    assert run.facts("attempt", "step") == attempts
    [summary] = run.recorder.summary()
    assert (summary.last, summary.highest, summary.lowest) == (7.5, 7.5, 1.0)
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.5), (6, 6.5), (7, 7.5)]
    assert shown_by_tensorboard(run.root / "out") == {"metrics": {"loss": expected}}
    assert (run.folder / "metrics.png").exists()
    assert not (run.previous(0) / "metrics" / "metrics.png").exists()


def test_metrics_are_brought_over_an_attempt_that_said_none(run):
    with run.attempt():
        report(1, loss=0.5)
    with run.attempt(1):
        pass
    with run.attempt(2):
        report(2, loss=0.25)

    assert run.facts("attempt", "step") == [(0, 1), (2, 2)]


def test_another_process_goes_on_with_the_metrics_of_a_killed_one(run, tmp_path):
    with run.attempt():
        report(1, loss=0.5)
        report(2, loss=0.25)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"time": "2023-11-14T22:1')
    other = Run(tmp_path)

    with other.attempt(1, resumed_from=1):
        report(2, loss=0.125)

    assert other.facts("attempt", "step") == [(0, 1), (0, 2), (1, 2)]
    [summary] = other.recorder.summary()
    assert (summary.last, summary.highest) == (0.125, 0.5)
    assert other.said == [MetricReported({"loss": 0.125}, 2, "report")]


def test_counting_goes_on_in_another_process(run, tmp_path):
    with run.attempt():
        emit(RankOutput(0, ("loss=1", "loss=2")))
    other = Run(tmp_path)

    with other.attempt(1):
        emit(RankOutput(0, ("loss=3",)))

    assert [metric.last_step for metric in other.recorder.summary()] == [3]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what trainjob logged; threads of others log too."""
    return [one.getMessage() for one in caplog.records if one.name.startswith("trainjob.")]


def test_files_of_the_script_are_never_touched(run, caplog):
    with run.attempt():
        run.folder.mkdir()
        for name in ("metrics.jsonl", "metrics.png"):
            (run.folder / name).write_text("mine")
        report(1, loss=0.5)
    run.recorder.write_plot()

    assert {file.name: file.read_text() for file in run.folder.iterdir()} == {
        "metrics.jsonl": "mine",
        "metrics.png": "mine",
    }
    assert run.said == [MetricReported({"loss": 0.5}, 1, "report")]
    assert [said[:22] for said in warnings(caplog)] == ["metrics are missing in"]


def test_a_folder_that_cannot_be_made_ends_no_training(run, caplog):
    with run.attempt() as output:
        (output / "metrics").write_text("a file of the script")
        for step in range(3):
            report(step, loss=0.5)
    run.recorder.write_plot()

    assert len(run.said) == 3
    assert len(warnings(caplog)) == 1


def test_a_full_disk_ends_no_training_and_leaves_whole_lines(run, caplog):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with run.attempt():
        report(1, loss=0.5)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # no file grows beyond that
        try:
            for step in range(2, 100):
                report(step, loss=0.5)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        report(100, loss=0.5)

    assert len(run.said) == 100
    steps = [step for (step,) in run.facts("step")]
    assert steps == [*range(1, len(steps)), 100]
    assert sum("metrics are missing in" in said for said in warnings(caplog)) == 1
    assert shown_by_tensorboard(run.root / "out")["metrics"]["loss"][-1] == (100, 0.5)


def test_listeners_may_ask_the_recorder(run):
    asked = []

    def ask(event: Event) -> None:
        if isinstance(event, MetricReported):
            asked.append((run.recorder.latest, run.recorder.summary()[0].last))

    with listening(ask), run.attempt():
        report(1, loss=0.5)

    assert asked == [({"loss": 0.5}, 0.5)]


def test_several_threads_may_tell_it_at_once(run):
    def tell(rank: int) -> None:
        for step in range(200):
            emit(RankOutput(rank, (f"loss-{rank}=1 loss={step}",)))
            report(step, accuracy=0.5)

    with run.attempt():
        contexts = [contextvars.copy_context() for _ in range(4)]
        threads = [
            threading.Thread(target=context.run, args=(tell, rank))
            for rank, context in enumerate(contexts)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(run.lines()) == len(run.said) == 200 + 4 * 200


def test_an_error_in_the_block_is_passed_on_and_nothing_is_lost(run):
    def train() -> None:
        with run.attempt() as output:
            write_scalars(output, "lr", {7: 0.1})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()

    assert run.facts("source") == [("tensorboard",)]
    assert not [thread for thread in threading.enumerate() if thread.name == "read-metrics"]


SCRIPT = """\
import sys
from trainjob.progress import report
for step in range(1, 4):
    print(f"step {step} loss={1 / step}", flush=True)
report(3, total=3, epoch=1, accuracy=0.97)
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
writer = EventFileWriter(sys.argv[1])
writer.add_event(Event(step=3, summary=Summary(value=[Summary.Value(tag="lr", simple_value=0.1)])))
writer.close()
"""


def test_metrics_of_a_real_rank_are_found(tmp_path):
    run = Run(tmp_path, Named("loss", r"step (?P<step>\d+) loss=(\S+)"))
    (tmp_path / "train.py").write_text(SCRIPT)

    with run.attempt() as output:
        launch = Launch(
            run_id="metrics-of-a-rank",
            launcher="single",
            world_size=1,
            program=("train.py", str(output / "tb")),
            is_script=True,
            code_dir=tmp_path,
            log_dir=tmp_path / "logs",
            env={},
            device="cpu",
            cores=1,
            auto_stop_s=None,
            grace_s=5.0,
        )
        run_training(launch)

    found = {(event.source, event.step, *event.metrics.items()) for event in run.said}
    assert found == {
        ("regex", 1, ("loss", 1.0)),
        ("regex", 2, ("loss", 0.5)),
        ("regex", 3, ("loss", 1 / 3)),
        ("report", 3, ("accuracy", 0.97)),
        ("tensorboard", 3, ("lr", 0.1)),
    }


def test_importing_it_loads_no_heavy_package():
    code = (
        "import sys, trainjob.metrics.recorder, trainjob.metrics.target\n"
        "print({'numpy', 'tensorboard', 'matplotlib', 'google.protobuf'} & set(sys.modules))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )

    assert done.stdout.strip() == "set()"


def test_outputs_that_vanish_end_no_training(run):
    with run.attempt() as output:
        report(1, loss=0.5)
        shutil.rmtree(output)
        report(2, loss=0.25)

    assert len(run.said) == 2
