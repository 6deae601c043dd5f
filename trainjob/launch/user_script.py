"""Runs the user's Python script in a rank the way Python does, and records how it fails.

Called by `bootstrap` in the process that becomes the program of the rank; standard library alone.
What differs from ``python script.py``: the frames of this file are not in a traceback, and leaving
never hangs or aborts after a failure.
"""

import atexit
import builtins
import ctypes
import faulthandler
import functools
import importlib.util
import io
import marshal
import os
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from importlib.machinery import SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any, NoReturn, Protocol

_LEAVE_TIMEOUT_S = 10
_PYC_HEADER_BYTES = 16  # PEP 552
_LIBRARIES = (
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    # Those of the worker, of which an environment with requirements is not a part.
    *(path for path in sys.path if path.endswith("-packages")),
)


class Rank(Protocol):
    """What the bootstrap knows of the rank."""

    def write_error(self, **fields: Any) -> None:
        """Record an error, by the fields of `trainjob.launch.records.ErrorRecord`."""

    def note_that_it_listens(self) -> None:
        """Record that the rank handles SIGUSR1, as a request to stop."""

    def note_that_it_is_done(self) -> None:
        """Record that the script has come to its end without an error."""

    def was_told_to_leave(self) -> bool:
        """Tell whether the rank was asked to leave, by SIGTERM."""


def run_script(argv: list[str], rank: Rank) -> NoReturn:
    """Run the script `argv[0]` with its arguments as the main module, and end the process."""
    code = 1
    try:
        _notice_handlers(rank)
        code = _leave(_execute(argv, rank), rank)
    finally:
        _end_process(code, rank)


def _notice_handlers(rank: Rank) -> None:
    """Have it noted when the script handles SIGUSR1: then asking it to stop is worth the time.

    The kernel cannot tell: MPICH 5.0 has a handler for this signal in every rank.
    """
    original = signal.signal

    @functools.wraps(original)
    def signal_and_notice(signalnum: int, handler: Any) -> Any:
        previous = original(signalnum, handler)
        if signalnum == signal.SIGUSR1 and callable(handler):
            rank.note_that_it_listens()
        return previous

    signal.signal = signal_and_notice


def _execute(argv: list[str], rank: Rank) -> int:
    """Run the script and return its exit code."""
    script = Path(argv[0]).absolute()
    sys.argv = list(argv)
    if not sys.flags.safe_path:
        sys.path.insert(0, str(script.resolve().parent))
    # It stays the main module to the end: threads and exit handlers may unpickle its classes.
    module = sys.modules["__main__"] = ModuleType("__main__")
    loader = SourcelessFileLoader if script.suffix == ".pyc" else SourceFileLoader
    module.__dict__.update(
        __file__=str(script),
        __cached__=None,
        __loader__=loader("__main__", str(script)),
        __builtins__=builtins,
    )
    try:
        exec(_load(script), module.__dict__)  # noqa: S102 - this is what the rank is for
    except SystemExit as error:
        return _exit_code(error, rank)
    except BaseException as error:  # noqa: BLE001 - the border of the process
        return _failure(error, rank)
    return 0


def _load(script: Path) -> CodeType:
    with io.open_code(str(script)) as file:
        content = file.read()
    if script.suffix != ".pyc":
        return compile(content, str(script), "exec", dont_inherit=True)
    if not content.startswith(importlib.util.MAGIC_NUMBER):
        version = ".".join(map(str, sys.version_info[:2]))
        raise ImportError(f"{str(script)!r} is compiled for another Python than {version}")
    code: CodeType = marshal.loads(content[_PYC_HEADER_BYTES:])  # noqa: S302 - the user's code
    return code


def _exit_code(error: SystemExit, rank: Rank) -> int:
    """Return what Python makes of sys.exit(value), and record it if it is a failure."""
    if error.code is None:
        return 0
    code = error.code & 0xFF if isinstance(error.code, int) else 1
    if code:
        text = "" if isinstance(error.code, int) else str(error.code)
        _record(error, "SystemExit", text, code, lambda: _write(text), rank)
    return code


def _write(text: str) -> None:
    if text:
        sys.stderr.write(f"{text}\n")


def _failure(error: BaseException, rank: Rank) -> int:
    """Print an exception as Python does, record it, and return the exit code."""
    code = 130 if isinstance(error, KeyboardInterrupt) else 1
    kind = type(error)
    is_plain = kind.__module__ in ("builtins", "__main__")
    name = kind.__qualname__ if is_plain else f"{kind.__module__}.{kind.__qualname__}"
    message = str(traceback.TracebackException(kind, error, None))
    error.__traceback__ = _without_our_frames(error.__traceback__)

    def show() -> None:
        sys.excepthook(kind, error, error.__traceback__)

    _record(error, name, message, code, show, rank)
    return code


def _record(
    error: BaseException,
    kind: str,
    message: str,
    code: int,
    show: Callable[[], None],
    rank: Rank,
) -> None:
    """Print the error, then record it: on a full disk, the log has it at least."""
    time_ns, log_offset = time.time_ns(), os.fstat(2).st_size
    try:
        show()
    finally:
        rank.write_error(
            type=kind,
            message=message,
            traceback=_users_traceback(error),
            code=code,
            time_ns=time_ns,
            log_offset=log_offset,
        )


def _without_our_frames(frames: TracebackType | None) -> TracebackType | None:
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return frames


def _users_traceback(error: BaseException) -> str:
    """Return the traceback with the user's frames and the one that raised."""
    frames = _without_our_frames(error.__traceback__)
    shown = traceback.TracebackException(type(error), error, frames)
    _drop_library_frames(shown)
    return "".join(shown.format())


def _drop_library_frames(shown: traceback.TracebackException) -> None:
    frames = list(shown.stack)
    kept = [f for f in frames[:-1] if not f.filename.startswith((*_LIBRARIES, "<frozen "))]
    shown.stack = traceback.StackSummary.from_list(kept + frames[-1:])
    for other in (shown.__cause__, shown.__context__, *(shown.exceptions or ())):
        if other is not None:
            _drop_library_frames(other)


def _leave(code: int, rank: Rank) -> int:
    """Do what Python does before it exits, in its order; return the exit code."""
    if code:
        # Threads and processes that a failed script leaves may never end.
        faulthandler.dump_traceback_later(_LEAVE_TIMEOUT_S, exit=True, file=2)
    threading._shutdown()  # type: ignore[attr-defined]
    if not code:  # before others can notice: what comes now breaks connections
        rank.note_that_it_is_done()
    atexit._run_exitfuncs()
    try:
        # Without the other ranks, which have been asked to leave too, MPI waits for ever.
        if not code and not rank.was_told_to_leave():
            _leave_distributed(sys.modules.get("torch.distributed"))
            _leave_mpi(sys.modules.get("mpi4py.MPI"))
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except Exception as error:  # noqa: BLE001 - the border of the process
        return code or _failure(error, rank)
    return code


def _end_process(code: int, rank: Rank) -> NoReturn:
    if not code and "mpi4py.MPI" in sys.modules and not rank.was_told_to_leave():
        # mpich says goodbye to its mpirun in an exit handler of C, which os._exit leaves out: then
        # mpirun kills the other ranks (mpich 5.0). PyDLL: no other thread of Python runs meanwhile.
        ctypes.PyDLL(None).exit(0)
    # Not sys.exit: threads of gloo can turn that into an abort (torch 2.13).
    os._exit(code)


def _leave_distributed(distributed: Any) -> None:
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()  # waits for what was started and not awaited


def _leave_mpi(mpi: Any) -> None:
    if not mpi or not mpi.Is_initialized() or mpi.Is_finalized():
        return
    asked, found = int(os.environ["WORLD_SIZE"]), mpi.COMM_WORLD.Get_size()
    mpi.Finalize()
    if found != asked:
        raise RuntimeError(
            f"asked for {asked} ranks, found {found} in COMM_WORLD of mpi4py; mpirun and mpi4py "
            "must be of the same MPI"
        )
