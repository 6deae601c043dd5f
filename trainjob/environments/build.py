"""Makes one environment: a venv that shows the worker's packages, and in it what pip installs.

What pip builds from source is code of the job: it runs without the secrets of the worker, and in a
sandbox if the job has one.
"""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from trainjob.environments.asked import Asked
from trainjob.environments.folder import MARKER, size_of
from trainjob.environments.worker import kept_versions, site_folders
from trainjob.errors import RequirementsFailed, RequirementsUnavailable
from trainjob.launch.environment import is_of_machine, search_path
from trainjob.launch.launch import Mount
from trainjob.launch.sandbox import sandbox_argv
from trainjob.requirements_file import FILE
from trainjob.storage.cache.removal import destroy
from trainjob.values import storable
from trainjob.workspace import Workspace

_PIP = (
    "import ctypes, runpy; ctypes.CDLL(None).prctl(1, 9); "  # PR_SET_PDEATHSIG: SIGKILL
    "runpy.run_module('pip', run_name='__main__', alter_sys=True)"
)
"""pip, which ends when this process does: nobody would take what it installs."""
_OPTIONS = ("--no-input", "--disable-pip-version-check", "--no-warn-script-location")
_OF_PIP = re.compile(r"PIP_\w+|(?:https?|all|no)_proxy", re.IGNORECASE)
_NOT_OF_PIP = {"PYTHONPATH", "PYTHONHOME"}
_NOT_IN_SANDBOX = {"TMPDIR", "XDG_CACHE_HOME"}
_SETTINGS_OF_PIP = ("/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")
_UNREACHABLE = re.compile(
    r"connection broken by|Temporary failure in name resolution|Read timed out"
    r"|Connection (?:refused|reset|aborted)|HTTP error 5\d\d|Network is unreachable"
)
_WRITING = 0o222
_SHOWN_LINES = 20
_POLL_S = 0.1


def build_environment(target: Path, asked: Asked, workspace: Workspace, *, sandbox: bool) -> None:
    """Make the environment in the folder `target`, which is not there yet.

    Args:
        target: Where it is made; scripts in it name this path, see `move_scripts`.
        asked: What is installed.
        workspace: The run for which it is made.
        sandbox: Whether what pip builds sees a copy of the code, the environment and programs
            alone.

    Raises:
        RequirementsFailed: With the last lines of pip; `RequirementsUnavailable` if the place of
            the packages does not answer.
        LaunchError: If there is no sandbox to be had.
    """
    venv.create(target, symlinks=True, with_pip=False)
    [site] = target.glob("lib/python*/site-packages")
    # Behind what is installed here, and with what these folders themselves add.
    shown = [f"import site; site.addsitedir({folder!r})" for folder in site_folders()]
    (site / "trainjob-worker.pth").write_text("\n".join(shown), encoding="utf-8")
    constraints = target / "constraints.txt"
    kept = (f"{name}=={version}\n" for name, version in kept_versions().items())
    constraints.write_text("".join(kept), encoding="utf-8")
    python = target / "bin" / "python"
    argv = [str(python), "-P", "-c", _PIP, "install", *_OPTIONS, "--progress-bar", "off"]
    argv += ["--requirement", FILE, "--constraint", str(constraints)]
    log = workspace.logs / "requirements.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with _copied(asked.code_dir, workspace) as copy:
        if sandbox:
            argv = [*_sandbox(target, asked, copy, workspace, python), *argv]
        code = _run(argv, copy, _environment(python, workspace, sandbox=sandbox), log)
    if code:
        raise _failure(code, log)
    if (target / "bin").is_symlink():  # through which scripts elsewhere would be changed
        what = f"asked for what {FILE} names, found its folder bin replaced by a link"
        raise RequirementsFailed(f"{what}; correct what it builds\n  ({log})")
    _write_marker(target, site, asked)


def move_scripts(made: Path, target: Path) -> None:
    """Have the scripts of an environment name the place to which it is going to be moved."""
    for script in (made / "bin").iterdir():
        is_text = script.name.lower().startswith("activate")
        if script.is_symlink() or not script.is_file():
            continue
        content = script.read_bytes()
        if is_text or content.startswith(b"#!"):
            script.write_bytes(content.replace(os.fsencode(made), os.fsencode(target)))


def protect(root: Path) -> None:
    """Take the right to write from everything in an environment; what can be run stays so.

    Links are left as they are, wherever they lead. Of the folder itself the right stays: moving a
    folder takes it (rename(2)).
    """
    for path, _, names, folder in os.fwalk(root):
        for name in names:
            with suppress(OSError):  # a link
                how = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                _take_writing(os.open(name, how, dir_fd=folder))
        if Path(path) != root:
            _take_writing(os.dup(folder))


def _take_writing(opened: int) -> None:
    try:
        os.fchmod(opened, stat.S_IMODE(os.fstat(opened).st_mode) & ~_WRITING)
    finally:
        os.close(opened)


@contextmanager
def _copied(code_dir: Path, workspace: Workspace) -> Iterator[Path]:
    """Copy the code for pip, which builds a package in its folder and leaves there what it made."""
    copy = workspace.private / "code"
    destroy(copy)
    try:
        shutil.copytree(code_dir, copy, symlinks=True)
        yield copy
    finally:
        destroy(copy)


def _sandbox(
    target: Path, asked: Asked, copy: Path, workspace: Workspace, python: Path
) -> list[str]:
    home = Path("~").expanduser()
    mounts = [
        Mount("/tmp", workspace.private / "tmp"),  # noqa: S108 - that of the sandbox
        Mount(str(home), workspace.private / "home"),
        Mount(str(asked.code_dir), copy),
        Mount(str(target), target),
    ]
    for name in (*_SETTINGS_OF_PIP, os.environ.get("PIP_CONFIG_FILE", "")):
        settings = Path(name).expanduser()
        if name and settings.is_file():
            mounts.append(Mount(str(settings), settings, is_read_only=True))
    return sandbox_argv(mounts, search_path(os.environ), folder=asked.code_dir, python=python)


def _environment(python: Path, workspace: Workspace, *, sandbox: bool) -> dict[str, str]:
    """Return what pip gets of our environment: settings of the machine, and its own."""
    left_out = _NOT_OF_PIP | (_NOT_IN_SANDBOX if sandbox else set())
    inherited = {
        name: value
        for name, value in os.environ.items()
        if (is_of_machine(name) or _OF_PIP.fullmatch(name)) and name not in left_out
    }
    return {
        **inherited,
        "PATH": search_path(os.environ, python),
        "VIRTUAL_ENV": str(python.parent.parent),
        # By it, whatever is left of it is found.
        "TRAINJOB_RUN_ID": workspace.root.name,
    }


def _run(argv: Sequence[str], folder: Path, environment: dict[str, str], log: Path) -> int:
    """Run a command to its end and return its exit code; an exception ends it."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            argv,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            # Waiting without end, a thread would not hear of a stop.
            while process.poll() is None:
                time.sleep(_POLL_S)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode


def _failure(code: int, log: Path) -> RequirementsFailed:
    text = storable(log.read_text(encoding="utf-8", errors="replace"))
    last = "\n".join(f"  {line}" for line in text.splitlines()[-_SHOWN_LINES:])
    kind, do = RequirementsFailed, "correct the file, or what it needs on this machine"
    if "No space left on device" in text:
        do = "make space on the disk of TRAINJOB_CACHE_DIR"
    elif _UNREACHABLE.search(text):
        kind, do = RequirementsUnavailable, "check the index of pip (PIP_INDEX_URL) and the network"
    ended = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    return kind(f"asked for what {FILE} names, found pip ended by {ended}; {do}\n{last}\n  ({log})")


def _write_marker(target: Path, site: Path, asked: Asked) -> None:
    facts = {
        "lines": asked.lines,
        "num_packages": len(list(site.glob("*.dist-info"))),
        "size_bytes": size_of(target),
        "python": sys.version,
    }
    marker = target / MARKER
    # What pip built could write here: a link of this name would lead the write elsewhere.
    marker.unlink(missing_ok=True)
    how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(marker, how, 0o644), "w", encoding="utf-8") as file:
        json.dump(facts, file)
        file.flush()
        os.fsync(file.fileno())
