"""The kernel's word on memory: real kills in a cgroup of our own, and files of both kinds."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainjob.launch import evidence
from trainjob.launch.evidence import memory_events, memory_evidence

ROOT = Path(__file__).parents[2]
LIMIT_BYTES = 100 * 2**20
JOIN = "import os; open({procs!r}, 'w').write(str(os.getpid()))\n"
KILLED_CHILD = """
import dataclasses, json, subprocess, sys
from trainjob.launch.evidence import memory_events, memory_evidence
before = memory_events()
subprocess.run([sys.executable, "-c", "bytearray(300 * 2**20)"], check=False)
print(json.dumps(dataclasses.asdict(memory_evidence(before, was_killed=True))))
"""
KILLED_RANK = """
import dataclasses, json, pathlib, sys
from trainjob.launch.evidence import memory_events
from trainjob.launch.failure import RankFailed, training_error
from trainjob.launch.launch import Launch
from trainjob.launch.records import read_records
from trainjob.launch.supervision import Finished
from trainjob.launch.training import run_training
root = pathlib.Path(sys.argv[1])
(root / "code").mkdir()
(root / "code" / "train.py").write_text("print('loading', flush=True); bytearray(300 * 2**20)")
launch = Launch(
    run_id=f"oom-{root.name}", launcher="single", world_size=1, program=("train.py",),
    is_script=True, code_dir=root / "code", log_dir=root / "logs", env={}, device="cpu",
    cores=None, auto_stop_s=None, grace_s=5.0,
)
before = memory_events()
try:
    run_training(launch)
except RankFailed:
    ranks = read_records(launch.records_dir, 1)
    found = training_error(launch, ranks, Finished("finished", 137), before).failure
    print(json.dumps([found.headline, found.rule.name, found.restart, found.evidence]))
"""


@pytest.fixture
def run_in_cgroup() -> Iterator[Callable[..., Any]]:
    """Return a function that runs Python code in a cgroup of 100 MiB and returns its last JSON."""
    parent = evidence._cgroup(Path("/sys/fs/cgroup"))
    if parent is None or not os.access(parent, os.W_OK):
        pytest.skip("needs the right to make a memory cgroup")
    group = parent / f"trainjob-test-{os.getpid()}"
    group.mkdir()
    limit = next(group / n for n in ("memory.max", "memory.limit_in_bytes") if (group / n).exists())
    limit.write_text(str(LIMIT_BYTES))

    def run(code: str, *args: str) -> Any:
        code = JOIN.format(procs=str(group / "cgroup.procs")) + code
        done = subprocess.run(
            [sys.executable, "-c", code, *args],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    yield run

    group.rmdir()


def test_a_kill_for_want_of_memory_is_counted_and_quoted(run_in_cgroup):
    found = run_in_cgroup(KILLED_CHILD)

    assert found["oom_killed"]
    lines = found["lines"]
    assert lines[0] == (
        "out-of-memory killer: 1 process killed in the cgroup of the run during the attempt"
    )
    # The kernel's log may not be readable here; what is quoted is about the kill.
    assert all("Killed process" in line for line in lines[1:-1])
    assert lines[-1] == "memory: limit 100 MiB, peak 100 MiB"


def test_a_rank_that_the_kernel_kills_is_named_so(run_in_cgroup, tmp_path):
    headline, name, restart, lines = run_in_cgroup(KILLED_RANK, str(tmp_path))

    assert headline == "rank 0 of 1 was killed by SIGKILL (out of memory)"
    assert name == "killed for want of memory"
    assert restart
    assert lines[0].startswith("out-of-memory killer: 1 process killed in the cgroup of the run")


def test_no_kill_is_worth_a_word_only_after_sigkill():
    before = memory_events()
    # Another test's kill must not be counted here.
    before = replace(before, oom_kills=memory_events().oom_kills)

    quiet = memory_evidence(before, was_killed=False)
    after_kill = memory_evidence(before, was_killed=True)

    assert quiet == evidence.Evidence()
    assert not after_kill.oom_killed
    assert "no processes killed" in after_kill.lines[0]
    assert after_kill.lines[-1].startswith("memory: limit ")


def test_without_an_account_from_before_nothing_is_claimed():
    assert memory_evidence(None, was_killed=True) == evidence.Evidence()


def own_cgroup(controller: str) -> str:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    fields = [line.split(":", 2) for line in lines]
    return next((path for _, name, path in fields if name == controller), "")


@pytest.mark.parametrize("in_container", [False, True])
def test_both_kinds_of_cgroups_are_read(tmp_path, in_container):
    own = own_cgroup("")
    if not own:
        pytest.skip("needs /proc/self/cgroup with version 2")
    folder = tmp_path if in_container else tmp_path / own.lstrip("/")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.events").write_text("low 0\noom 2\noom_kill 2\noom_group_kill 0\n")
    (folder / "memory.peak").write_text("4096\n")

    found = memory_events(tmp_path)

    assert (found.oom_kills, found.of_machine, found.peak_bytes) == (2, False, 4096)


def test_version_1_is_read(tmp_path):
    own = own_cgroup("memory")
    if not own:
        pytest.skip("needs /proc/self/cgroup with version 1")
    folder = tmp_path / "memory" / own.lstrip("/")
    folder.mkdir(parents=True)
    (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    (folder / "memory.max_usage_in_bytes").write_text("8192\n")
    (folder / "memory.stat").write_text("cache 0\nhierarchical_memory_limit 16384\n")

    found = memory_events(tmp_path)

    assert (found.oom_kills, found.peak_bytes, found.limit_bytes) == (3, 8192, 16384)


def test_without_a_cgroup_the_machine_counts(tmp_path):
    found = memory_events(tmp_path)

    assert found.of_machine
    assert found.oom_kills is not None
    assert found.peak_bytes is None
    assert found.limit_bytes > 0
