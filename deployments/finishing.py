"""What still saves the results of runs whose flows have ended, on this machine.

A run that is cancelled is Cancelled for the server half a minute later, and its `flows.finisher`
may upload for an hour more. Who stops a machine waits for these, too. `deployments.drain` and
`deployments.leave` are the callers.
"""

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from trainjob.launch.processes import read_environment
from trainjob.workspace import workspaces_dir

_MODULE = b"flows.finisher"


def finishers_of(workers: Collection[int]) -> dict[int, str]:
    """Return what finishes runs in the workspaces of these workers.

    Args:
        workers: Process ids of workers of this machine; others whose runs have their workspaces in
            the same folder count as well.

    Returns:
        The id of its run, by that of its process.
    """
    folders = {_workspaces_of(worker) for worker in workers}
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and (root := _finished_by(process)) and root.parent in folders:
            found[int(process.name)] = root.name
    return found


def _finished_by(process: Path) -> Path | None:
    """Return the workspace that a process finishes: its first argument.

    The second is the descriptor by which it holds that workspace until all is saved. Then it may
    stay for a while and see to the last word on the run, which nobody has to wait for: a run that
    is started again meanwhile could be given to the very worker that is about to be stopped.
    """
    with suppress(OSError, ValueError):
        words = (process / "cmdline").read_bytes().split(b"\0")
        root, lock = map(os.fsdecode, words[words.index(_MODULE) + 1 :][:2])
        if (process / "fd" / lock).samefile(Path(root) / "lock"):
            return Path(root)
    return None


def _workspaces_of(worker: int) -> Path:
    """Return the folder in which the runs of a worker have theirs."""
    try:
        return workspaces_dir(read_environment(worker))
    except OSError:  # it has ended, or is somebody else's: of this user's, there is one folder
        return workspaces_dir()
