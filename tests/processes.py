"""The processes of a run: found by the mark that they carry, and what stands for one that saves."""

import subprocess
import sys
from pathlib import Path


def marked_processes(run_id: str) -> dict[int, str]:
    """Return the command lines of all living processes of a run by their pid."""
    mark = f"TRAINJOB_RUN_ID={run_id}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def finisher_in(workspace: Path, *, saves: bool = True) -> "subprocess.Popen[bytes]":
    """Start a process that has what is known of a finisher from outside.

    Args:
        workspace: Of the run that it finishes.
        saves: Whether it still holds the workspace.
    """
    workspace.mkdir(parents=True)
    command = [sys.executable, "-c", "import signal; signal.pause()", "flows.finisher"]
    with (workspace / "lock").open("w") as lock:
        return subprocess.Popen(
            [*command, str(workspace), str(lock.fileno()), "asked", "-1"],
            pass_fds=[lock.fileno()] if saves else [],
        )


def worker_script(folder: Path, code: str = "import signal; signal.pause()") -> list[str]:
    """Return a command line that has what is known of a worker from outside.

    Args:
        folder: Where the program called ``prefect`` is made.
        code: What it does, with ``worker``, ``start`` and what is added as its arguments.
    """
    script = folder / "prefect"
    script.write_text(code)
    return [sys.executable, str(script), "worker", "start"]
