"""Jobs of a worker that is about to be stopped are asked once, and waited for."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployments.leave import main
from deployments.worker_process import is_worker, starts_worker
from tests.processes import finisher_in, worker_script
from tests.waiting import PATIENCE_S, wait_until

WORKER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[3:]])"
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
lingers = subprocess.Popen([*command, *sys.argv[3:]])
for place in ("leaves", "follows"):
    subprocess.run([*command, {job!r}, pathlib.Path(sys.argv[4]).with_name(place)])
lingers.wait()
"""
"""A worker with one place for jobs that leave at once, and one for a job that takes its time."""


@contextmanager
def worker_with(
    job: str, folder: Path, worker: str = WORKER
) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a process whose child runs this job, and end both."""
    command = [*worker_script(folder, worker), job, str(folder)]
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
    watching = finisher_in(tmp_path / "run-2", saves=False)
    command = worker_script(tmp_path)
    with subprocess.Popen(command) as worker, finisher_in(tmp_path / "run-1") as saving, watching:
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


STARTS = """
import pathlib, subprocess, sys
worker = subprocess.Popen(sys.argv[1:])
pathlib.Path(sys.argv[-1], "worker").write_text(str(worker.pid))
worker.wait()
"""
"""Stands for sudo, timeout or a shell that has begun a worker, and has all of its words."""


@contextmanager
def wrapper_with(job: str, folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Start a process whose child is a worker with this job, give both, and end all."""
    worker = [*worker_script(folder, WORKER), job, str(folder)]
    command = [sys.executable, "-c", STARTS, *worker]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            wait_until((folder / "ready").exists)
            wait_until((folder / "worker").exists)
            yield process, int((folder / "worker").read_text())
        finally:
            subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)


def test_the_children_of_what_is_no_worker_are_not_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With 1 for an id, these were all services of the machine."""
    with subprocess.Popen([sys.executable, "-c", WORKER, "", "", SAVES, str(tmp_path)]) as other:
        try:
            wait_until((tmp_path / "ready").exists)

            code = main([str(other.pid), "--timeout", "0"])

            is_alive = other.poll() is None
        finally:
            subprocess.run(["pkill", "-KILL", "-P", str(other.pid)], check=True)
    assert (code, is_alive) == (1, True)
    assert not (tmp_path / "asked").exists()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"asked the jobs of the worker {other.pid} to leave, found python")
    assert "which is no worker itself; name a worker by its process id" in line


def test_what_has_only_begun_a_worker_does_not_have_the_worker_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with wrapper_with(SAVES, tmp_path) as (wrapper, worker):
        code = main([str(wrapper.pid), "--timeout", "0"])
        are_alive = wrapper.poll() is None and is_worker(worker)

    assert (code, are_alive) == (1, True)
    assert not (tmp_path / "asked").exists()
    assert f"the worker {wrapper.pid} to leave, found python" in capsys.readouterr().err


def test_a_worker_is_found_beside_what_has_begun_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A `pgrep` for the words of a worker gives both."""
    with wrapper_with(SAVES, tmp_path) as (wrapper, worker):
        code = main([str(wrapper.pid), str(worker)])

        assert wrapper.wait(PATIENCE_S) == 0  # it waited for the worker, which waited for its job
    assert code == 0
    assert (tmp_path / "asked").read_text() == "once "
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"passed over the process {wrapper.pid}: python")


@pytest.mark.parametrize("other", [str(os.getpid()), "9" * 20], ids=["another", "none"])
def test_a_wrong_id_is_told_and_does_not_keep_the_jobs_of_others_from_leaving(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str
) -> None:
    with worker_with(SAVES, tmp_path) as worker:
        code = main([other, str(worker.pid)])

        assert worker.wait(PATIENCE_S) == 0
    assert code == 1
    assert (tmp_path / "asked").read_text() == "once "
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"asked the jobs of the worker {other} to leave, found ")


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        ("/venv/bin/python3.11 -m prefect worker start --pool cpu", True),
        ("python -u -X dev -Wignore -Im prefect --no-prompt worker start", True),
        ("/venv/bin/python /venv/bin/prefect worker start -p cpu", True),
        ("python -m prefect worker ls", False),
        ("python -m prefect server start", False),
        ("python -m supervisor -- python -m prefect worker start", False),
        ("python -X dev watch.py prefect worker start", False),
        ("python -c pass -m prefect worker start", False),
        ("python", False),
        ("sudo -u trainjob python -m prefect worker start", False),
        ("timeout 60 /venv/bin/prefect worker start", False),
        ("", False),
    ],
)
def test_a_worker_is_known_by_what_its_interpreter_runs(line: str, is_one: bool) -> None:
    assert starts_worker(line.split()) == is_one
