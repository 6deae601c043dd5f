"""The digits examples, killed and started again, end with the very weights of an unbroken run.

As a job that starts its ranks again by itself, and by a launcher alone, without a flow: all that is
asked of a restart is that the script is started again with the same checkpoint folder.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Queue

import pytest
import torch

from tests import processes
from tests.e2e.watched_runs import Ended, run
from tests.jobs import make_job
from tests.waiting import PATIENCE_S, wait_until
from trainjob.events import AttemptStarted, Event

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
NUM_STEPS = 4 * 30  # epochs, and batches of 16 images of 1,437 on three ranks
NUM_RANKS = 3  # the sum of two numbers is the same in any order
LAUNCHERS = {
    "train.py": ["torchrun", "--standalone", "--nproc-per-node", str(NUM_RANKS)],
    "train_mpi.py": ["mpirun", "-n", str(NUM_RANKS), sys.executable, "-m", "mpi4py"],
}

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def unbroken(digits_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of torchrun without an interruption."""
    folder = tmp_path_factory.mktemp("unbroken")
    Training("train.py", digits_dataset, folder).wait()
    return folder / "out"


class Training:
    """One attempt of an example, with a mark by which all its processes are found."""

    def __init__(
        self, script: str, dataset: Path, folder: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.checkpoints = folder / "checkpoints"
        self._mark = uuid.uuid4().hex
        self.log = folder / f"{self._mark}.log"
        folder.mkdir(exist_ok=True)
        arguments = ["--data_url", dataset, "--train_url", folder / "out", "--epochs", 4]
        arguments += ["--checkpoint_dir", self.checkpoints, "--save_every", 7]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*LAUNCHERS[script], str(DIGITS / script), *map(str, arguments)],
                env={
                    **os.environ,
                    "PATH": PATH,
                    "PYTHONPATH": str(ROOT),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "OMP_NUM_THREADS": "1",
                    "EXACT_RESUME_MARK": self._mark,
                    **(env or {}),
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> str:
        """Wait for the end, which must be a good one, and return what was printed."""
        assert self._process.wait(PATIENCE_S) == 0, self.log.read_text()
        return self.log.read_text()

    def wait_for_step(self, step: int) -> None:
        """Wait until so many steps are saved."""
        deadline = time.monotonic() + PATIENCE_S
        while saved_step(self.checkpoints) < step:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=0.005)
            assert self._process.returncode is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()

    def kill(self) -> None:
        """Kill the launcher and all ranks at once, which are in sessions of their own."""
        while marked := marked_processes(self._mark):
            for pid in marked:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()


def marked_processes(mark: str) -> list[int]:
    """Return the processes that live and have the mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():  # empty once it is dead
                found.append(int(folder.name))
    return found


def saved_step(folder: Path) -> int:
    """Return the last step saved; a kill between two may come at any moment after it."""
    return max((int(path.name.split("-")[1]) for path in folder.glob("step-*")), default=0)


def assert_same_results(first: Path, second: Path) -> None:
    weights = [torch.load(out / "model.pt", weights_only=True) for out in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    metrics = [json.loads((out / "metrics.json").read_text()) for out in (first, second)]
    assert metrics[0] == metrics[1]
    assert [epoch["epoch"] for epoch in metrics[0]["history"]] == [1, 2, 3, 4]


def kill_and_restart(script: str, dataset: Path, folder: Path) -> int:
    """Train with a kill at a random step in between; return the step of the second start."""
    training = Training(script, dataset, folder)
    training.wait_for_step(random_step(random.Random(0), 0, num_kills=1))
    training.kill()
    shutil.rmtree(folder / "out", ignore_errors=True)  # a restart begins with empty outputs
    start = saved_step(folder / "checkpoints")
    printed = Training(script, dataset, folder).wait()
    assert f"goes on from step {start}\n" in printed
    return start


def random_step(moments: random.Random, part: int, num_kills: int) -> int:
    """Return a step in the next part of the training's first half, so that a late kill finds it.

    Each kill comes later than the one before.
    """
    first, after = (NUM_STEPS * number // (2 * num_kills) for number in (part, part + 1))
    return moments.randrange(first + 1, after)


@pytest.mark.e2e
def test_weights_are_bit_identical_after_three_kills_in_a_job(
    digits_dataset: Path,
    unbroken: Path,
    tmp_path: Path,
    prefect_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed = random.SystemRandom().getrandbits(32)
    sys.stdout.write(f"the ranks and steps of the kills are those of the seed {seed}\n")
    monkeypatch.setenv("TRAINJOB_WORKDIR", str(tmp_path / "runs"))

    ended = run_with_kills(
        digits_job(digits_dataset, tmp_path), tmp_path / "runs", random.Random(seed), 3
    )

    assert ended.state.name == "Completed", ended.state.message
    starts = [attempt.resumed_from or 0 for attempt in ended.report.attempts]
    assert 0 == starts[0] < starts[1] < starts[2] < starts[3] < NUM_STEPS
    for attempt in ended.report.attempts[:3]:
        assert "was killed first by SIGKILL" in (attempt.outcome or "")
    assert_same_results(unbroken, tmp_path / "out")


def digits_job(dataset: Path, folder: Path) -> dict[str, object]:
    """The job of the example, trained as `Training` does."""
    return make_job(
        folder,
        name="digits",
        algorithm={"kind": "script", "code": {"url": str(DIGITS)}, "boot_file": "train.py"},
        inputs=[{"name": "data_url", "url": str(dataset)}],
        checkpoints={"url": str(folder / "checkpoints")},
        hyperparameters={"epochs": 4, "save_every": 7},
        env={"OMP_NUM_THREADS": "1"},
        resources={"processes_per_node": NUM_RANKS},
        launcher="torchrun",
        limits={"auto_restart": 3},
    )


def run_with_kills(
    job: dict[str, object], runs: Path, moments: random.Random, num_kills: int
) -> Ended:
    """Run a job, and kill one of its ranks at a random step of each of its first attempts."""
    started: Queue[AttemptStarted] = Queue()

    def watch(event: Event) -> None:
        if isinstance(event, AttemptStarted):
            started.put(event)

    def kill() -> None:
        for part in range(num_kills):
            start = started.get(timeout=PATIENCE_S).resumed_from or 0
            [checkpoints] = runs.glob("*/checkpoints")
            # Before the step: a busy machine looks for them while the training comes to its end.
            ranks = all_ranks_of(checkpoints.parent.name)
            wait_for_step(checkpoints, max(start + 1, random_step(moments, part, num_kills)))
            os.kill(moments.choice(ranks), signal.SIGKILL)

    with ThreadPoolExecutor() as pool:
        killing = pool.submit(kill)
        ended = run(job, watch)
        killing.result()
    return ended


def wait_for_step(checkpoints: Path, step: int) -> None:
    wait_until(lambda: saved_step(checkpoints) >= step)


def all_ranks_of(run_id: str) -> list[int]:
    """Wait until all ranks are there, and return them."""
    wait_until(lambda: len(ranks_of(run_id)) == NUM_RANKS)
    return ranks_of(run_id)


def ranks_of(run_id: str) -> list[int]:
    """Return the processes that run the script: below one that watches each of them."""
    parents: dict[int, int] = {}
    for pid in processes.marked_processes(run_id):
        with suppress(OSError):
            if b"\0LOCAL_RANK=" in Path(f"/proc/{pid}/environ").read_bytes():
                stat = Path(f"/proc/{pid}/stat").read_text()
                parents[pid] = int(stat.rpartition(")")[2].split()[1])
    return sorted(pid for pid, parent in parents.items() if parent in parents)


@pytest.mark.mpi
def test_weights_are_bit_identical_after_a_kill_of_mpirun(
    digits_dataset: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mpi4py", reason="the extra mpi is not installed")
    if shutil.which("mpirun", path=PATH) is None:
        pytest.skip("mpirun is not on PATH")
    Training("train_mpi.py", digits_dataset, tmp_path / "unbroken").wait()

    start = kill_and_restart("train_mpi.py", digits_dataset, tmp_path / "killed")

    assert 0 < start < NUM_STEPS
    assert_same_results(tmp_path / "unbroken" / "out", tmp_path / "killed" / "out")


def test_a_training_that_is_asked_to_stop_saves_and_the_next_goes_on_to_the_same_weights(
    digits_dataset: Path, unbroken: Path, tmp_path: Path
) -> None:
    stop_file = tmp_path / "stop"
    stopped = Training(
        "train.py", digits_dataset, tmp_path / "stopped", {"TRAINJOB_STOP_FILE": str(stop_file)}
    )
    stopped.wait_for_step(1)
    stop_file.touch()
    stopped.wait()
    step = saved_step(tmp_path / "stopped" / "checkpoints")
    results = sorted(path.name for path in (tmp_path / "stopped" / "out").iterdir())

    Training("train.py", digits_dataset, tmp_path / "stopped").wait()

    assert 0 < step < NUM_STEPS
    assert results == ["metrics.json", "model.pt"]
    assert_same_results(unbroken, tmp_path / "stopped" / "out")
