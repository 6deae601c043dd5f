"""The absolute folders that a script expects, such as /dataset, made real for its ranks alone.

With bubblewrap (https://github.com/containers/bubblewrap) the launcher and all below it get a view
of the machine in which the folders are mounted, and which no other process sees: nothing is made
on the machine, no root is needed, and any number of runs have their own. Processes keep their
numbers, so that the supervisor finds and ends them as ever. Without it, links are made while the
training runs, where the paths can be made and are free: of two runs, one is refused. The link of a
run that was killed is replaced.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from trainjob.errors import LaunchError, Problem
from trainjob.launch.bubblewrap import INSTALL_BWRAP, refusal
from trainjob.launch.launch import Mount
from trainjob.launch.waiting import wait_for_supervisor
from trainjob.workspace import Workspace, workspaces_dir

_MAX_WORDS = 8990  # MAX_ARGS in bubblewrap.c is 9000


@contextmanager
def mounted(mounts: Sequence[Mount], search_path: str) -> Iterator[list[str]]:
    """Have the mounts there for what is started in this block.

    Args:
        mounts: Folders to show, those above others first. A source that is not there is made.
        search_path: Where bubblewrap is looked for, as a PATH.

    Yields:
        The words that go before the command whose processes are to see them.

    Raises:
        LaunchError: If neither mounts nor links can be made.
    """
    if problems := mount_problems(mounts, search_path):
        raise LaunchError("\n".join(map(str, problems)))
    for mount in mounts:
        mount.source.mkdir(parents=True, exist_ok=True)
    bwrap, _ = find_bwrap(search_path)
    if bwrap is not None and mounts:
        yield _bwrap_argv(bwrap, mounts)
        return
    with _linked(mounts):
        yield []


def mount_problems(mounts: Sequence[Mount], search_path: str) -> list[Problem]:
    """Return why the mounts cannot be made on this machine; nothing is changed.

    A link of another run is not told of, which may have ended when this one starts to train.
    """
    if not mounts:
        return []
    bwrap, why_not = find_bwrap(search_path)
    problems = []
    for mount in _outer(mounts):
        if bwrap is None and (found := _link_obstacle(mount)):
            asked = f"the folder {mount.target}"
            found = f"{why_not}, and {found}"
            problems.append(Problem("profile", asked, found, INSTALL_BWRAP))
    return problems


def find_bwrap(search_path: str) -> tuple[str | None, str]:
    """Return bubblewrap if it works here, and otherwise what is found instead."""
    path = shutil.which("bwrap", path=search_path)
    if path is None:
        return None, "no bubblewrap"
    if found := refusal([path, "--dev-bind", "/", "/", "--", "true"]):
        return None, f"a bubblewrap that may not run here ({found})"
    return path, ""


def _bwrap_argv(bwrap: str, mounts: Sequence[Mount]) -> list[str]:
    """Return the command that shows everything of the machine and the mounts.

    A mount needs a folder to be made on. One that is not there yet cannot be made on the machine,
    where it would stay or is forbidden: the folder that would hold it is made anew, with everything
    that lies in it.
    """
    targets = [_without_links(mount.target) for mount in mounts]
    outer = {_without_links(mount.target) for mount in _outer(mounts)}
    lacking = {target for target in outer if not _is_folder(target)}
    made = {_holder(target) for target in lacking}
    words = [bwrap, "--die-with-parent"]
    if "/" not in made:
        words += ("--dev-bind", "/", "/")
    for folder in sorted(made):  # those above others first
        if folder != "/":
            words += ("--tmpfs", folder)
        for path in _entries(folder):
            if path in outer:
                continue
            if Path(path).is_symlink():
                words += ("--symlink", str(Path(path).readlink()), path)
            else:  # try: what is gone by then need not be shown
                words += ("--dev-bind-try", path, path)
    for mount, target in zip(mounts, targets, strict=True):
        words += ("--ro-bind" if mount.is_read_only else "--bind", str(mount.source), target)
    if len(words) > _MAX_WORDS:
        found = f"too much beside it in {', '.join(sorted(made))} for bubblewrap to show"
        raise LaunchError(
            f"asked for {', '.join(sorted(lacking))}, found {found}; make it on the machine, empty"
        )
    return [*words, "--"]


def _is_folder(path: str) -> bool:
    return Path(path).is_dir() and not Path(path).is_symlink()


def _holder(target: str) -> str:
    """Return the lowest folder above the target that is there."""
    return str(next(parent for parent in Path(target).parents if parent.is_dir()))


def _entries(folder: str) -> list[str]:
    try:
        return sorted(entry.path for entry in os.scandir(folder))
    except OSError as error:
        message = f"asked for a folder below {folder!r}, found {error.strerror}"
        raise LaunchError(f"{message}; let the worker's user read {folder!r}") from error


def _without_links(target: str) -> str:
    """Return the target with no link above it: a mount is made where it really lies."""
    return os.path.join(os.path.realpath(Path(target).parent), Path(target).name)  # noqa: PTH118


def _outer(mounts: Sequence[Mount]) -> list[Mount]:
    """Return the mounts that lie in none of the others."""
    targets = {mount.target for mount in mounts}
    return [m for m in mounts if not targets & {str(p) for p in Path(m.target).parents}]


def _link_obstacle(mount: Mount) -> str | None:
    """Return what keeps the target from being made as a link, or None."""
    target = Path(mount.target)
    if target.is_symlink() and target.readlink().is_relative_to(workspaces_dir()):
        return None
    if os.path.lexists(target):
        return "something else there"
    above = next(parent for parent in target.parents if os.path.lexists(parent))
    if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
        return None
    return f"no right to make it in {str(above)!r}"


@contextmanager
def _linked(mounts: Sequence[Mount]) -> Iterator[None]:
    """Make a link for every mount, and remove exactly what was made."""
    made: dict[Path, Path | None] = {}
    try:
        for mount in mounts:
            _link(mount, made)
        yield
    finally:
        for path, source in reversed(made.items()):
            with suppress(OSError):  # a folder that others use by now stays
                if source is None:
                    path.rmdir()
                elif path.readlink() == source:
                    path.unlink()


def _link(mount: Mount, made: dict[Path, Path | None]) -> None:
    """Make one link and the folders above it, and add them to `made`, with where the link leads."""
    target = Path(mount.target)
    asked = f"asked for the folder {mount.target}"
    try:
        for folder in reversed(target.parents):
            if not folder.exists():
                folder.mkdir()
                made[folder] = None
        _remove_left_link(target)
        target.symlink_to(mount.source)
    except FileExistsError as error:
        place = str(target.readlink()) if target.is_symlink() else "something else"
        if place != str(mount.source):  # otherwise a process of this run that was killed left it
            do = f"wait until it has ended, remove the link if it has, or {INSTALL_BWRAP}"
            raise LaunchError(f"{asked}, found it in use by a run as {place!r}; {do}") from error
    except OSError as error:
        raise LaunchError(f"{asked}, found {error.strerror}; {INSTALL_BWRAP}") from error
    made[target] = mount.source


def _remove_left_link(target: Path) -> None:
    """Remove the link of another run that was killed."""
    if not target.is_symlink():
        return
    runs = workspaces_dir()
    runs.mkdir(parents=True, exist_ok=True)
    turn = os.open(runs, os.O_RDONLY)
    try:
        # One at a time: the second of two runs that find such a link would remove the first's.
        fcntl.flock(turn, fcntl.LOCK_EX)
        if target.is_symlink() and _is_left(target.readlink()):
            target.unlink()
    finally:
        os.close(turn)


def _is_left(place: Path) -> bool:
    """Tell whether no process is at work of the run to which a link leads."""
    runs = workspaces_dir()
    if not place.is_relative_to(runs) or place == runs:
        return False
    workspace = Workspace(runs / place.relative_to(runs).parts[0])
    if not workspace.root.exists():
        return True
    try:
        with (workspace.root / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            records = workspace.attempt_logs(workspace.last_attempt) / "records"
            return wait_for_supervisor(records, timeout_s=0)
    except OSError:  # held by that run, or it cannot be told
        return False
