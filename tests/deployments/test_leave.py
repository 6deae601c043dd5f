"""Jobs of a worker that is about to be stopped are asked once, and waited for."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployments.leave import main
from tests.waiting import PATIENCE_S, wait_until

WORKER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
SAVES = """
import pathlib, signal, sys
asked = pathlib.Path(sys.argv[1], "asked")
def leave(*_):
    with asked.open("a") as file:
        file.write("once ")
signal.signal(signal.SIGTERM, leave)
pathlib.Path(sys.argv[1], "ready").touch()
signal.pause()
"""
STAYS = SAVES + "signal.pause()\n"


@contextmanager
def worker_with(job: str, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a process whose child runs this job, and end both."""
    command = [sys.executable, "-c", WORKER, job, str(folder)]
    with subprocess.Popen(command, start_new_session=True) as worker:
        try:
            wait_until((folder / "ready").exists)
            yield worker
        finally:
            subprocess.run(["pkill", "-KILL", "-s", str(worker.pid)], check=False)


def test_a_job_is_asked_once_and_has_left_when_it_returns(tmp_path: Path) -> None:
    with worker_with(SAVES, tmp_path) as worker:
        code = main([str(worker.pid)])

        assert worker.wait(PATIENCE_S) == 0  # it waited for its child
    assert code == 0
    assert (tmp_path / "asked").read_text() == "once "


def test_a_job_that_stays_is_told_after_the_timeout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with worker_with(STAYS, tmp_path) as worker:
        code = main([str(worker.pid), "--timeout", "0.5"])

    assert code == 1
    assert "still there after 0.5 s" in capsys.readouterr().err
    assert (tmp_path / "asked").read_text() == "once "
