"""`make serve` in a terminal: asks nobody anything there, and is stopped when it is closed."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.prefect_homes import fill_home
from tests.waiting import PATIENCE_S, wait_until
from trainjob.launch.processes import descendants, read_process

ROOT = Path(__file__).parents[2]


@contextmanager
def served_in_a_terminal(
    home: Path, *, by_nohup: bool = False
) -> Iterator[tuple["subprocess.Popen[bytes]", FileIO]]:
    """Start `make serve` in a terminal of its own; give it, and the window that shows it."""
    env = {
        **os.environ,
        "PREFECT_HOME": str(fill_home(home)),
        "PREFECT_SERVER_API_PORT": str(free_port()),
    }
    seen, terminal = os.openpty()
    window = FileIO(seen)

    def prepare() -> None:
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        if by_nohup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-m", "deployments.serve"],
        cwd=ROOT,
        env=env,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=prepare,  # noqa: PLW1509 - tests have no threads that hold what it needs
    )
    os.close(terminal)
    try:
        wait_until(lambda: descendants(process.pid))  # its server
        yield process, window
    finally:
        process.kill()
        process.wait()
        window.close()


@pytest.mark.timeout(1500)
def test_it_starts_in_a_terminal_and_stops_with_it_as_by_ctrl_c(tmp_path: Path) -> None:
    """Killed by SIGHUP, it would take server and worker with it at once, and leave jobs no word."""
    with served_in_a_terminal(tmp_path) as (process, window):
        said = b""
        while b"trainjob: ready" not in said:  # Prefect would ask there for a profile, and wait
            said += window.read(4096)
        parts = descendants(process.pid)

        window.close()

        assert process.wait(PATIENCE_S) >= 0
        wait_until(lambda: not any(map(read_process, parts)))


def test_it_outlives_its_terminal_if_it_is_to_and_is_stopped_without_one(tmp_path: Path) -> None:
    with served_in_a_terminal(tmp_path, by_nohup=True) as (process, window):
        status = Path(f"/proc/{process.pid}/status").read_text()
        window.close()
        process.terminate()

        assert process.wait(PATIENCE_S) == 0
    [ignored] = re.findall(r"^SigIgn:\t(\w+)", status, re.MULTILINE)
    assert int(ignored, 16) & 1 << signal.SIGHUP - 1
