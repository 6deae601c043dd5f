"""What the launcher starts as every rank: ``python -u bootstrap.py ORDER_FILE``.

It gives the rank its number under every launcher, then forks. The child runs the user's script or
command, unchanged, with its output in the rank's log. The parent stays as a stub: it passes signals
on, waits, and records how the child ended, so that a rank that was killed, crashed or left by
os._exit has its exact status on record. Run by path; standard library alone.
"""

import contextlib
import ctypes
import errno
import faulthandler
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

_LAUNCH_ERROR = "trainjob.LaunchError"

_ROOM_BYTES = 32 * 2**10
_MUST_BE_WRITTEN = ("error", "told-to-leave", "exit")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STACKS = signal.SIGRTMAX - 5  # as `stacks` asks for them; SIGUSR2 may be the script's, or Java's
_WATCHED: set[int] = {
    *(_STACKS, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP),
    signal.SIGCHLD,
}


def main() -> NoReturn:
    """Become the rank that the launcher says, run its program, and end the process."""
    parent = os.getppid()
    order_file = Path(sys.argv[1])
    order = json.loads(order_file.read_text(encoding="utf-8"))
    if os.environ.get("MS_ROLE") == "MS_SCHED" and order["launcher"] == "msrun":
        script = Path(__file__).with_name("msrun_scheduler.py")
        words = [sys.executable, "-P", "-u", str(script), str(order_file), str(parent)]
        os.execv(sys.executable, words)  # noqa: S606 - no shell is wanted
    os.environ.update(_rank_variables(order["launcher"], os.environ))
    records = Records(order_file.parent, int(os.environ["RANK"]))
    os.environ["TRAINJOB_PROGRESS_FILE"] = str(records.path("progress", "jsonl"))
    os.environ["TRAINJOB_LISTENS_FILE"] = str(records.listens_file)
    # Whose file that is: the program may start ranks of its own, which all inherit it.
    os.environ["TRAINJOB_RANK"] = str(records.rank)
    _check_world_size(order["world_size"], records)
    records.make_room()

    # Blocked from before the fork: a signal that comes now waits until it can be passed on.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    own_pid = os.getpid()
    # So that also what a program hides from its group is found when all has to end.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = os.fork()
    if child:
        _die_with_parent(signal.SIGHUP, parent)
        stub = Stub(child, parent, records, order["grace_s"], is_script=order["is_script"])
        os._exit(stub.run())
    _die_with_parent(signal.SIGKILL, own_pid)
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.environ["TRAINJOB_RANK_PID"] = str(os.getpid())
    _redirect_output(Path(order["log_dir"], f"rank-{records.rank}.log"), records)
    if order["rank_cores"]:
        with contextlib.suppress(OSError):  # it may compute anywhere, only not as fast
            os.sched_setaffinity(0, order["rank_cores"][records.rank])
    _run(order["program"], records, is_script=order["is_script"])


class Records:
    """Writes what happens to a rank, one JSON file an event, complete or absent."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self.rank = rank

    def path(self, event: str, suffix: str = "json") -> Path:
        """Return the file of an event."""
        return self.folder / f"{event}-{self.rank}.{suffix}"

    @property
    def listens_file(self) -> Path:
        """The file whose presence says that the rank acts on requests to stop."""
        return self.folder / f"listens-{self.rank}"

    def make_room(self) -> None:
        """Set disk space aside for what the rank may die of: a full disk is to be on record."""
        for event in _MUST_BE_WRITTEN:
            with contextlib.suppress(OSError):
                self.path(event, "room").write_bytes(b" " * _ROOM_BYTES)

    def leave_room(self) -> None:
        """Give back what was set aside and not needed."""
        for event in _MUST_BE_WRITTEN:
            with contextlib.suppress(OSError):
                self.path(event, "room").unlink(missing_ok=True)

    def write(self, event: str, **fields: Any) -> None:
        """Record an event."""
        content = json.dumps(fields).encode()
        temporary = self.path(event, f"{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content)
        except OSError:
            if len(content) > _ROOM_BYTES:
                raise
            temporary = self.path(event, "room")
            with temporary.open("r+b") as room:  # the blanks behind it are no harm in JSON
                room.write(content)
        temporary.replace(self.path(event))

    def write_error(self, **fields: Any) -> None:
        """Record how the rank fails, by the fields of `trainjob.launch.records.ErrorRecord`."""
        self.write("error", **fields)

    def note_that_it_listens(self) -> None:
        """Record that the rank handles SIGUSR1, as a request to stop."""
        with contextlib.suppress(OSError):
            self.listens_file.touch()

    def note_that_it_is_done(self) -> None:
        """Record that the script has come to its end without an error."""
        with contextlib.suppress(OSError):
            self.write("done", time_ns=time.time_ns())

    def was_told_to_leave(self) -> bool:
        """Tell whether the rank was asked to leave before its program ended."""
        return self.path("told-to-leave").exists()

    def write_launch_error(self, message: str, code: int) -> None:
        """Record that the program of the rank could not be started, and say it."""
        told = {"type": _LAUNCH_ERROR, "message": message, "traceback": "", "code": code}
        self.write_error(**told, time_ns=time.time_ns(), log_offset=0)
        sys.stderr.write(f"{message}\n")


def _rank_variables(launcher: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return one set of variables from what each launcher says in its own words."""
    if launcher == "torchrun":
        return {}
    if launcher == "msrun":
        rank, size = environ["RANK_ID"], environ["RANK_SIZE"]
        ranks = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        return ranks | {"GROUP_RANK": "0"}
    if "OMPI_COMM_WORLD_RANK" in environ:
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
        local_names = ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
    else:
        names, local_names = ("PMI_RANK", "PMI_SIZE"), ("MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    rank, size = environ.get(names[0], "0"), environ.get(names[1], "1")
    return {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": environ.get(local_names[0], rank),
        "LOCAL_WORLD_SIZE": environ.get(local_names[1], size),
        "GROUP_RANK": "0",
    }


def _check_world_size(asked: int, records: Records) -> None:
    found = int(os.environ["WORLD_SIZE"])
    if found == asked:
        return
    message = f"asked for {asked} ranks, found a launcher that makes groups of {found}"
    records.write_launch_error(f"{message}; its mpirun must be of the same MPI as mpi4py", 1)
    raise SystemExit(1)


def _die_with_parent(signum: signal.Signals, parent: int) -> None:
    """Have the kernel send us `signum` when our parent dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


class Stub:
    """The parent of a rank's program: passes signals on and records the end."""

    def __init__(
        self, child: int, parent: int, records: Records, grace_s: float, *, is_script: bool
    ) -> None:
        self._child = child
        self._records = records
        self._parent = parent
        self._grace_s = grace_s
        # A shell dies of SIGTERM while what it started goes on: a command gets it as a group. The
        # workers of a script's loader must not get it, or its last step before leaving fails.
        self._target = child if is_script else -child
        self._terminated_ns: int | None = None
        self._kill_at: float | None = None
        self._orphaned = False

    def run(self) -> int:
        """Wait for the end of the program, record it, and return our own exit code."""
        with contextlib.suppress(OSError):  # it is in its group already, or has ended
            os.setpgid(self._child, self._child)
        self._records.write(
            "begin", pid=os.getpid(), program_pid=self._child, time_ns=time.time_ns()
        )
        code = os.waitstatus_to_exitcode(self._wait())
        self._records.write(
            "exit",
            code=code,
            time_ns=time.time_ns(),
            terminated_ns=self._terminated_ns,
            orphaned=self._orphaned,
        )
        self._records.leave_room()
        self._wait_for_group()
        if not self._orphaned and (code or self._terminated_ns is not None):
            self._linger()
        return code if code >= 0 else 128 - code

    def _wait(self) -> int:
        while True:
            if (status := self._reap()) is not None:
                return status
            left_s = 3600.0 if self._kill_at is None else self._kill_at - time.monotonic()
            arrived = signal.sigtimedwait(_WATCHED, max(0.0, left_s))
            if arrived is not None:
                self._handle(arrived.si_signo)
            elif self._kill_at is not None:
                self._send(-self._child, signal.SIGKILL)
                self._kill_at = None

    def _reap(self) -> int | None:
        """Collect ended children, which orphans become; return how the program ended if it has."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == self._child:
                    return status
                if pid == 0:
                    break
        return None

    def _handle(self, signum: int) -> None:
        if signum == signal.SIGTERM:
            # Launcher and supervisor may both say it: the second would interrupt the saving.
            if self._terminated_ns is None:
                self._terminated_ns = time.time_ns()
                with contextlib.suppress(OSError):  # a full disk must not cost the rank its time
                    self._records.write("told-to-leave", time_ns=self._terminated_ns)
                self._kill_at = time.monotonic() + self._grace_s
                self._send(self._target, signum)
        elif signum == signal.SIGHUP and os.getppid() != self._parent:
            self._orphaned = True
            self._kill_all()
        elif signum == signal.SIGINT or (signum != signal.SIGCHLD and self._catches(signum)):
            self._send(self._child, signum)

    def _kill_all(self) -> None:
        """Kill everything below us: nobody above is there to do it."""
        self._send(-self._child, signal.SIGKILL)
        _find_own_package()
        # Only now: before, this package may not be on sys.path, since we are run by path.
        from trainjob.launch.processes import descendants, signal_all

        signal_all(descendants(os.getpid()), signal.SIGKILL)

    def _catches(self, signum: int) -> bool:
        """Tell whether the program handles a signal that would end it otherwise."""
        status = Path(f"/proc/{self._child}/status").read_text(encoding="utf-8")
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (signum - 1) & 1)

    def _wait_for_group(self) -> None:
        """Give what a command started the rest of its time to leave after SIGTERM."""
        while self._kill_at is not None and self._target < 0 and self._group_is_there():
            if time.monotonic() > self._kill_at:
                self._send(-self._child, signal.SIGKILL)
                return
            time.sleep(0.05)
            self._reap()

    def _group_is_there(self) -> bool:
        try:
            os.killpg(self._child, 0)
        except ProcessLookupError:
            return False
        return True

    @staticmethod
    def _linger() -> None:
        """Stay until the supervisor, or the death of the launcher, dismisses us.

        A launcher that sees one rank leave in a bad way kills the others, which may still be
        saving: mpich and Open MPI at once, torchrun after 30 s. The supervisor gives them time.
        """
        signal.sigwait({signal.SIGHUP})

    @staticmethod
    def _send(target: int, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, signum)


def _redirect_output(log: Path, records: Records) -> None:
    """Point input to nothing and both outputs to the rank's log: a file never slows a rank."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(nothing, 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(nothing)
    # Both stay open, whatever the program does with its standard error.
    faulthandler.enable(file)
    # Stacks that are asked for are no output: a file of their own.
    stacks = os.open(records.path("stacks", "txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for signum in (_STACKS, signal.SIGUSR2):
        faulthandler.register(signum, stacks)


def _run(program: list[str], records: Records, *, is_script: bool) -> NoReturn:
    if not is_script:
        _become(program, records)
    _find_own_package()
    # Only now: before, this package may not be on sys.path, since we are run by path.
    from trainjob.launch.user_script import run_script

    run_script(program, records)


def _find_own_package() -> None:
    if not sys.flags.safe_path:
        del sys.path[0]  # the folder of this file
    if importlib.util.find_spec("trainjob") is None:
        sys.path.append(str(Path(__file__).parents[2]))


def _become(argv: list[str], records: Records) -> NoReturn:
    """Become the user's command."""
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, other programs do not
        signal.signal(signum, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - no shell is wanted
    except OSError as error:
        hint = "make it executable, or start it with sh" if error.errno == errno.EACCES else ""
        hint = hint or "write it as in a terminal in the code folder"
        message = f"asked for the command {argv[0]!r}, found: {error.strerror}; {hint}"
        records.write_launch_error(message, 127)
        os._exit(127)


if __name__ == "__main__":
    main()
