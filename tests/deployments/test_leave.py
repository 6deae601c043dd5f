"""Jobs of a worker that is about to be stopped are asked once, and waited for."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployments.leave import main
from tests.processes import finisher_in
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
LINGERS = (
    SAVES
    + """
import time
while not pathlib.Path(sys.argv[1]).with_name("follows").joinpath("ready").exists():
    time.sleep(0.01)
"""
)
REFILLS = """
import pathlib, subprocess, sys
command = [sys.executable, "-c"]
lingers = subprocess.Popen([*command, *sys.argv[1:]])
for place in ("leaves", "follows"):
    subprocess.run([*command, {job!r}, pathlib.Path(sys.argv[2]).with_name(place)])
lingers.wait()
"""
"""A worker with one place for jobs that leave at once, and one for a job that takes its time."""


@contextmanager
def worker_with(
    job: str, folder: Path, worker: str = WORKER
) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a process whose child runs this job, and end both."""
    command = [sys.executable, "-c", worker, job, str(folder)]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            wait_until((folder / "ready").exists)
            yield process
        finally:
            subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)


def test_a_job_is_asked_once_and_has_left_when_it_returns(tmp_path: Path) -> None:
    with worker_with(SAVES, tmp_path) as worker:
        code = main([str(worker.pid)])

        assert worker.wait(PATIENCE_S) == 0  # it waited for its child
    assert code == 0
    assert (tmp_path / "asked").read_text() == "once "


def test_a_job_that_takes_the_place_of_one_that_left_is_not_asked(tmp_path: Path) -> None:
    lingers, leaves, follows = (tmp_path / name for name in ("lingers", "leaves", "follows"))
    for folder in (lingers, leaves, follows):
        folder.mkdir()
    with worker_with(LINGERS, lingers, REFILLS.format(job=SAVES)) as worker:
        wait_until((leaves / "ready").exists)

        code = main([str(worker.pid), "--timeout", str(PATIENCE_S)])

    assert code == 0
    assert (leaves / "asked").exists()
    assert (follows / "ready").exists()
    assert not (follows / "asked").exists()


def test_a_job_that_stays_is_told_after_the_timeout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = tmp_path / "asked"
    with worker_with(STAYS, tmp_path) as worker:
        code = main([str(worker.pid), "--timeout", "0.5"])
        wait_until(lambda: asked.exists() and asked.read_text())  # it is killed with its worker

    assert code == 1
    assert "still there after 0.5 s" in capsys.readouterr().err
    assert asked.read_text() == "once "


def test_what_saves_the_results_of_a_job_that_has_left_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRAINJOB_WORKDIR", str(tmp_path))
    waits = [sys.executable, "-c", "import signal; signal.pause()"]
    watching = finisher_in(tmp_path / "run-2", saves=False)
    with subprocess.Popen(waits) as worker, finisher_in(tmp_path / "run-1") as saving, watching:
        try:
            code = main([str(worker.pid), "--timeout", "0.5"])
            saving.kill()
            saving.wait()
            later = main([str(worker.pid), "--timeout", "0.5"])
        finally:
            for process in (saving, watching, worker):
                process.kill()

    assert (code, later) == (1, 0)
    assert f"still there after 0.5 s: processes {saving.pid}" in capsys.readouterr().err


def test_who_names_no_worker_is_told_that_nobody_was_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A script whose `pgrep` finds none would go on, and stop a worker that has jobs."""
    assert main([]) == 1

    assert capsys.readouterr().err == (
        "asked the jobs of workers to leave, found the id of none, so nobody was asked; name a "
        "worker by its process id: `pgrep -af 'worker start'` shows those of this machine\n"
    )
