import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from trainjob import progress
from trainjob.progress import report, should_stop


@pytest.fixture
def progress_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "progress-0.jsonl"
    monkeypatch.setenv("TRAINJOB_PROGRESS_FILE", str(file))
    monkeypatch.setattr(progress, "_INTERVAL_S", 0.0)
    monkeypatch.setattr(progress, "_last_written", {})
    progress._held_back.clear()
    return file


@pytest.fixture
def stop_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINJOB_STOP_FILE", str(tmp_path / "stop-request"))
    monkeypatch.setenv("TRAINJOB_LISTENS_FILE", str(tmp_path / "listens-0"))
    monkeypatch.setattr(progress, "_INTERVAL_S", 0.0)
    monkeypatch.setattr(progress, "_look_at", 0.0)
    monkeypatch.setattr(progress, "_is_asked_to_stop", False)
    return tmp_path / "stop-request"


def records(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_outside_of_a_run_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    report(1, total=2, loss=0.5)

    assert not should_stop()
    assert list(tmp_path.iterdir()) == []


def test_every_report_is_one_line(progress_file):
    before = time.time_ns()

    report(1)
    report(2, total=10, epoch=3, loss=0.25, accuracy=1)

    first, second = records(progress_file)
    assert first | {"time_ns": 0} == {
        "time_ns": 0,
        "step": 1,
        "total": None,
        "epoch": None,
        "metrics": {},
    }
    assert (second["step"], second["total"], second["epoch"]) == (2, 10, 3)
    assert second["metrics"] == {"loss": 0.25, "accuracy": 1.0}
    assert isinstance(first["time_ns"], int)
    assert first["time_ns"] >= before


def test_what_can_be_a_number_is_one(progress_file):
    class Tensor:
        def __float__(self) -> float:
            return 0.5

    report(1, loss=Tensor(), diverged=float("nan"))

    metrics = records(progress_file)[0]["metrics"]
    assert isinstance(metrics, dict)
    assert metrics["loss"] == 0.5
    assert metrics["diverged"] != metrics["diverged"]


@pytest.mark.parametrize("value", ["high", None, [1.0]])
def test_a_metric_that_is_no_number_is_named(progress_file, value):
    with pytest.raises(TypeError, match="the metric 'loss' must be a number, found"):
        report(1, loss=value)


def test_a_full_disk_does_not_end_the_training(monkeypatch):
    monkeypatch.setenv("TRAINJOB_PROGRESS_FILE", "/dev/full")

    report(1, loss=0.5)


def test_a_folder_that_is_gone_does_not_end_the_training(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINJOB_PROGRESS_FILE", str(tmp_path / "gone" / "progress.jsonl"))
    monkeypatch.setenv("TRAINJOB_STOP_FILE", str(tmp_path / "gone" / "stop-request"))
    monkeypatch.setenv("TRAINJOB_LISTENS_FILE", str(tmp_path / "gone" / "listens-0"))

    report(1)

    assert not should_stop()


def test_lines_of_several_processes_do_not_mix(progress_file):
    script = (
        "from trainjob.progress import report\nfor i in range(200): report(i, total=i, loss=0.5)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script], env=dict(os.environ), cwd=Path.cwd())
        for _ in range(3)
    ]
    for process in processes:
        assert process.wait() == 0

    assert len(records(progress_file)) == 600


def test_of_fast_calls_some_are_left_out_but_never_the_last_step(progress_file, monkeypatch):
    monkeypatch.setattr(progress, "_INTERVAL_S", 1000.0)

    for step in range(1, 5):
        report(step, total=4)

    assert [record["step"] for record in records(progress_file)] == [1, 4]


def test_the_step_is_known_after_every_call(progress_file, monkeypatch):
    monkeypatch.setattr(progress, "_INTERVAL_S", 1000.0)
    known = []

    for step in (9, 10, 11, 2):
        report(step)
        known.append(int(Path(f"{progress_file}.step").read_text()))

    assert known == [9, 10, 11, 2]


def test_a_rare_metric_is_not_lost_behind_a_frequent_one(progress_file, monkeypatch):
    monkeypatch.setattr(progress, "_INTERVAL_S", 1000.0)

    for step in range(1, 4):
        report(step, loss=0.5)
    report(3, accuracy=0.9)

    metrics = [record["metrics"] for record in records(progress_file)]
    assert metrics == [{"loss": 0.5}, {"accuracy": 0.9}]


def test_names_without_end_do_not_fill_the_memory(progress_file):
    for step in range(1000):
        metrics: dict[str, Any] = {f"loss_{step}": 0.5}
        report(step, **metrics)

    assert len(records(progress_file)) == 1000
    assert len(progress._last_written) <= 100


def test_a_script_hears_that_it_should_stop_and_it_stays_so(stop_file):
    heard = [should_stop()]
    stop_file.touch()
    heard.append(should_stop())
    stop_file.unlink()
    heard.append(should_stop())

    assert heard == [False, True, True]


def test_a_script_that_asks_is_known_to_listen(stop_file):
    mark = stop_file.with_name("listens-0")
    assert not mark.exists()

    should_stop()

    assert mark.exists()


def test_a_script_may_ask_at_every_step(stop_file, monkeypatch):
    looks = []

    def look(path: str, mode: int) -> bool:
        looks.append((path, mode))
        return False

    monkeypatch.setattr(progress, "_INTERVAL_S", 3600)
    monkeypatch.setattr(os, "access", look)

    assert not any(should_stop() for _ in range(1000))

    assert looks == [(str(stop_file), os.F_OK)]


def test_only_the_standard_library_is_needed():
    script = (
        "import sys, trainjob.progress\n"
        "foreign = {m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(sorted(m for m in foreign if not m.startswith('_')))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path.cwd(),
    )

    assert done.stdout.strip() == "['trainjob']"


@pytest.mark.parametrize(
    "variable", ["RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "RANK_ID", "SLURM_PROCID"]
)
def test_another_rank_that_inherits_the_file_says_nothing_and_may_be_stopped(
    progress_file, stop_file, monkeypatch, variable
):
    monkeypatch.setenv("TRAINJOB_RANK", "0")
    monkeypatch.setenv(variable, "1")

    report(1, accuracy=0.95)
    stop_file.touch()

    assert not progress_file.exists()
    assert not Path(f"{progress_file}.step").exists()
    assert should_stop()
    assert stop_file.with_name("listens-0").exists()


@pytest.mark.parametrize(
    "env",
    [
        {"TRAINJOB_RANK": "3"},
        {"TRAINJOB_RANK": "3", "RANK": "3", "PMI_RANK": "3"},
        {"TRAINJOB_RANK": "0", "RANK": "-1"},
        {"TRAINJOB_RANK": "0", "RANK": "", "RANK_ID": "none"},
        {"TRAINJOB_RANK": "0", "RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"},
        {"TRAINJOB_RANK": "0", "RANK": "8", "LOCAL_RANK": "0", "CROSS_RANK": "1"},
        {"TRAINJOB_RANK": "0", "TRAINJOB_RANK_PID": str(os.getpid()), "RANK": "2"},
        {"RANK": "1"},
    ],
    ids=[
        *("unknown", "the same", "alone", "no number", "next machine", "next of DeepSpeed"),
        *("we started", "older launch"),
    ],
)
def test_a_process_that_may_be_the_rank_is_heard(progress_file, monkeypatch, env):
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    report(1)

    assert len(records(progress_file)) == 1


def test_the_last_report_of_a_script_is_written_when_it_ends(tmp_path):
    file = tmp_path / "progress-0.jsonl"
    script = """
        from trainjob.progress import report
        for step in range(1, 1001):
            report(step, loss=1 / step)
            if step % 100 == 0:
                report(step, accuracy=step / 1000)
    """
    env = os.environ | {"TRAINJOB_PROGRESS_FILE": str(file)}

    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=env, check=True)

    said: dict[str, object] = {}
    for record in records(file):
        metrics = record["metrics"]
        assert isinstance(metrics, dict)
        said |= metrics
    assert said == {"loss": 0.001, "accuracy": 1.0}
    assert records(file)[-1]["step"] == 1000


class Tensor:
    """Behaves like one of torch: what `detach` returns has the same memory."""

    def __init__(self, memory: list[float]) -> None:
        self._memory = memory

    def detach(self) -> "Tensor":
        return Tensor(self._memory)

    def clone(self) -> "Tensor":
        return Tensor(list(self._memory))

    def __float__(self) -> float:
        return self._memory[0]


def test_what_is_said_is_what_is_written_though_the_script_goes_on_with_it(
    progress_file, monkeypatch
):
    monkeypatch.setattr(progress, "_INTERVAL_S", 1000.0)
    numpy = pytest.importorskip("numpy", reason="needs numpy")
    memory = [1.5]
    total, array = Tensor(memory), numpy.array(2.5)
    report(1, total_loss=0.0, error=0.0)

    report(2, total_loss=total, error=array)
    memory[0] = 0.0
    array[...] = 0.0
    progress._write_held_back()

    assert records(progress_file)[-1]["metrics"] == {"total_loss": 1.5, "error": 2.5}


def test_a_tensor_of_torch_that_is_set_to_zero_later_keeps_what_was_said(
    progress_file, monkeypatch
):
    torch = pytest.importorskip("torch", reason="needs torch")
    monkeypatch.setattr(progress, "_INTERVAL_S", 1000.0)
    total = torch.tensor(1.5, requires_grad=True) * 2
    report(1, loss=0.0)

    report(2, loss=total)
    with torch.no_grad():
        total.zero_()
    progress._write_held_back()

    assert records(progress_file)[-1]["metrics"] == {"loss": 3.0}


CHILDREN = """
    import multiprocessing, os, sys
    from trainjob import progress

    progress._INTERVAL_S = 1000.0

    def train(first):
        for step in range(first, first + 5):
            progress.report(step, loss=step)
        if first == 1:  # and of a process that this one starts
            start(11)

    def start(first):
        process = multiprocessing.get_context(sys.argv[1]).Process(target=train, args=(first,))
        process.start()
        process.join()

    if __name__ == "__main__":
        start(1)
        progress.report(21, loss=21)
        progress.report(22, loss=22)
        start(31)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_last_report_of_a_process_of_multiprocessing_is_written_when_it_ends(tmp_path, method):
    file = tmp_path / "progress-0.jsonl"
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(CHILDREN))
    env = os.environ | {"TRAINJOB_PROGRESS_FILE": str(file), "PYTHONPATH": str(Path.cwd())}

    subprocess.run([sys.executable, str(script), method], env=env, check=True)

    steps = [record["step"] for record in records(file)]
    # What a fork has of its parent's is written by the parent, once.
    assert len(steps) == len(set(steps))
    assert {5, 15, 22, 35} <= set(steps)
