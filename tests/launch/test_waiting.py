"""Waiting for a supervisor of another process."""

import json
import os
import subprocess
import sys
from pathlib import Path

from trainjob.launch.waiting import wait_for_supervisor


def record(folder: Path, pid: int, start_ticks: int) -> None:
    content = {"pid": pid, "start_ticks": start_ticks}
    (folder / "supervisor.json").write_text(json.dumps(content))


def start_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_what_was_never_started_has_ended(tmp_path: Path) -> None:
    assert wait_for_supervisor(tmp_path, timeout_s=60)


def test_who_lives_is_waited_for(tmp_path: Path) -> None:
    record(tmp_path, os.getpid(), start_ticks(os.getpid()))

    assert not wait_for_supervisor(tmp_path, timeout_s=0.05)


def test_another_process_of_that_number_is_not_waited_for(tmp_path: Path) -> None:
    record(tmp_path, os.getpid(), start_ticks(os.getpid()) - 1)

    assert wait_for_supervisor(tmp_path, timeout_s=60)


def test_the_wait_is_over_when_the_process_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        record(tmp_path, process.pid, start_ticks(process.pid))

        process.kill()

        assert wait_for_supervisor(tmp_path, timeout_s=60)
