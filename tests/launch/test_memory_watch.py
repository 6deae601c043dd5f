"""What is counted as the memory of a training, how often, and that nothing ends the counting."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.launch.conftest import MakeLaunch, read_record
from tests.waiting import PATIENCE_S
from trainjob.events import Event, Noted, listening
from trainjob.launch import memory_watch
from trainjob.launch.launch import CoreLease
from trainjob.launch.memory_watch import MemoryWatch, memory_of, pause_s
from trainjob.launch.over_memory import read_over_memory
from trainjob.launch.supervision import Control
from trainjob.launch.training import TrainingResult, _run_limited, run_training

RunUntil = Callable[..., TrainingResult]

MIB, GIB = 2**20, 2**30
LIMIT_BYTES = 200 * MIB
GREEDY = "import time; data = b'x' * (400 * 2**20); time.sleep(60)"
SAVES_TOO_MUCH = """
    import signal, time
    def save(*_):
        data = b"x" * (400 * 2**20)
        time.sleep(600)
    signal.signal(signal.SIGTERM, save)
    print("ready", flush=True)
    time.sleep(600)
"""
SPAWNS = """
    import os, subprocess
    data = b"x" * (120 * 2**20)
    os.mkfifo("gate")
    for _ in range(15):
        opener = subprocess.Popen(["sh", "-c", "sleep 0.1; : > gate"])
        # Waits in the open, in our memory; so does a big command on a slow disk.
        waits = [(os.POSIX_SPAWN_OPEN, 0, "gate", os.O_RDONLY, 0)]
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}, file_actions=waits), 0)
        opener.wait()
    print("done", flush=True)
"""
HOLDS = """
import mmap, os, sys
own = b"x" * (40 * 2**20)
shared = mmap.mmap(-1, 30 * 2**20)
shared.write(b"y" * (30 * 2**20))
with open(sys.argv[1], "rb") as opened:
    read = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
sum(memoryview(read)[::4096])
sharing = os.fork()
if sharing:
    print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[int]:
    """Give one of two processes that share 40 MiB of their own, 30 MiB, and a file of 50 MiB."""
    file = tmp_path / "read"
    file.write_bytes(b"z" * (50 * MIB))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


def watch_of(records_dir: Path, limit_bytes: int) -> MemoryWatch:
    records_dir.mkdir(exist_ok=True)
    return MemoryWatch({"memory_bytes": limit_bytes, "world_size": 1}, records_dir)


@pytest.mark.parametrize("left_bytes", [0, GIB, 500 * GIB])
@pytest.mark.parametrize("took_s", [0.001, 0.5, 8.0])
def test_however_long_a_look_takes_the_next_one_comes_within_two_seconds(
    left_bytes: int, took_s: float
) -> None:
    assert 0.1 <= pause_s(left_bytes, took_s) <= 2.0


def test_the_nearer_the_limit_the_sooner_comes_the_next_look() -> None:
    pauses = [pause_s(left * GIB, 0.001) for left in (8, 1, 0)]

    assert pauses == [1.0, 0.5, 0.1]


def test_a_command_that_is_being_started_does_not_count_what_its_parent_has(
    make_launch: MakeLaunch,
) -> None:
    launch = make_launch(SPAWNS, memory_bytes=LIMIT_BYTES)

    run_training(launch)

    assert launch.rank_log(0).read_text() == "done\n"


def test_what_is_shared_counts_once_and_files_that_are_read_never_on_any_kernel(
    holder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = memory_of(holder)
    new = memory_of(holder, shared_out=True)

    # Kernels before 5.3 have no such lines.
    monkeypatch.setattr(memory_watch, "_MEMORY_SHARED_OUT", {"Pss_Of_Tomorrow:"})
    old = memory_of(holder, shared_out=True)

    assert 70 * MIB <= alone < 100 * MIB
    assert 35 * MIB <= new < 60 * MIB
    assert old == pytest.approx(new, abs=MIB)


@pytest.mark.parametrize(
    "begin",
    ['{"pid": Infinity}', '{"pid": NaN}', '{"pid": {}}', "[" * 100_000, "nothing", "[1]"],
    ids=["infinite", "nan", "object", "deep", "text", "list"],
)
def test_nothing_that_a_rank_writes_ends_the_watch(begin: str, holder: int, tmp_path: Path) -> None:
    watch = watch_of(tmp_path / "records", MIB)
    (tmp_path / "records" / "begin-0.json").write_text(begin)

    watch.start()

    assert watch.exceeded.wait(PATIENCE_S)
    os.close(watch.wake)
    over = read_over_memory(tmp_path / "records")
    assert over is not None
    assert over.used_bytes > 70 * MIB


@pytest.mark.parametrize(
    "record", [{"limit_bytes": float("inf")}, {"ranks": [[0, float("nan")]]}, {"ranks": 3}, None]
)
def test_a_record_of_the_watch_that_a_rank_has_changed_is_none(record: Any, tmp_path: Path) -> None:
    said = {"limit_bytes": 1, "used_bytes": 2, "ranks": []}
    (tmp_path / "memory.json").write_text(json.dumps(record and said | record))

    assert read_over_memory(tmp_path) is None


def test_ranks_that_take_too_much_while_they_save_are_ended_too(
    make_launch: MakeLaunch, run_until: RunUntil
) -> None:
    launch = make_launch(SAVES_TOO_MUCH, grace_s=500.0, memory_bytes=LIMIT_BYTES)
    control = Control()
    events: list[Event] = []

    with listening(events.append):
        result = run_until(launch, "ready", control.stop_at_target, control)

    assert result.reason == "target"
    assert result.seconds < PATIENCE_S
    notes = [event.text for event in events if isinstance(event, Noted)]
    assert notes[-1].endswith("; they were ended while they were stopping")


def test_a_cgroup_that_is_gone_is_told_and_memory_watched(
    make_launch: MakeLaunch, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    launch = make_launch(GREEDY, memory_bytes=LIMIT_BYTES, memory_group=gone)

    with pytest.raises(Exception, match="the ranks took"):
        _run_limited(launch, Control(), {})

    assert read_record(launch, "outcome")["reason"] == "memory"
    said = launch.launcher_log.read_text()
    assert f"the cgroup {str(gone)!r} cannot be joined" in said


def test_ranks_whose_core_is_gone_compute_on_the_others(
    make_launch: MakeLaunch, tmp_path: Path
) -> None:
    claim = os.open(tmp_path, os.O_RDONLY)
    lease = CoreLease((1_000_000,), claim)
    launch = make_launch("print('done', flush=True)", cores=1, core_lease=lease)

    run_training(launch)

    os.close(claim)
    assert launch.rank_log(0).read_text() == "done\n"
    assert "cannot be held to the cores [1000000]" in launch.launcher_log.read_text()
