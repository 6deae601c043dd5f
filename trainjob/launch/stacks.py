"""Takes the stacks of ranks, and tells from one which call a rank waits in.

A rank that spins in a collective uses all of its core, as if it computed: MPICH polls, and so do
NCCL and HCCL. Its stack alone shows that it waits. Used by `liveness`; standard library alone.
"""

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from trainjob.launch.rank_files import empty_rank_file, open_rank_file

_SIGNAL = signal.SIGRTMAX - 5
"""Of our own, as `bootstrap` has it: a script may do anything on SIGUSR2, even leave."""

_TIMEOUT_S = 1.0
_POLL_S = 0.001
_MAX_CHARS = 20_000
_MAX_SOURCE_BYTES = 2 * 2**20

_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)
_LIBRARY = re.compile(r"/(?:site|dist)-packages/|/lib/python3|^<")
_COMMUNICATION = re.compile(
    r"/(?:torch/(?:distributed|nn/parallel|cuda|accelerator)|torch_npu|mpi4py|horovod|deepspeed)/"
)
_LOADER = re.compile(r"/torch/utils/data/|/torchdata/|/multiprocessing/queues\.py$")

_COLLECTIVE = (
    r"I?all_?reduce|I?reduce_scatter|I?all_?gather|I?all_?to_?all|I?broadcast|I?bcast|I?barrier"
)
_FUNCTION = re.compile(
    rf"(?i){_COLLECTIVE}|gather|scatter|reduce|send|recv|wait|synchronize|probe|destroy_process"
)
"""Functions of libraries that communicate."""

_CALL = re.compile(
    rf"(?i)\b((?:{_COLLECTIVE})\w*|I?recv|sendrecv\w*|monitored_barrier|wait(?:all|any|some)?|finalize)\("
    # Words that also name computations count only on what looks like a group of ranks.
    r"|\b\w*(?:comm|dist|world|mpi|group)\w*\.(\w*(?:gather|scatter|reduce|send|recv|probe|scan)\w*)\("
)
"""Calls in a line of source, for libraries without frames of Python, as mpi4py is."""

DEVICE_CALLS = frozenset({"synchronize", "item", "cpu", "tolist", "numpy"})
_DEVICE_CALL = re.compile(rf"\.({'|'.join(sorted(DEVICE_CALLS))})\(")
"""Calls that wait for an accelerator, and so for collectives that it has been given."""

LEAVING_CALLS = frozenset({"Finalize", "destroy_process_group"})
"""Calls with which a rank ends: it does not wait for one that is behind, it left too early."""

HAS_ENDED = "has ended"
"""What is said of a rank that is gone, and so has no stack."""


class Stack(NamedTuple):
    """The stacks of one rank.

    Attributes:
        text: Of all threads, the latest call first, as faulthandler writes them.
        main: That of the main thread alone.
    """

    text: str
    main: str


def take_stacks(stubs: Mapping[int, int], records_dir: Path) -> dict[int, Stack]:
    """Have ranks write their stacks and return them; one that does not answer has none.

    Args:
        stubs: The process above each rank's script, which passes the signal on.
        records_dir: Where ranks write ``stacks-N.txt``.
    """
    files = {rank: records_dir / f"stacks-{rank}.txt" for rank in stubs}
    for rank, stub in stubs.items():
        with contextlib.suppress(OSError):
            empty_rank_file(files[rank])
            os.kill(stub, _SIGNAL)
    deadline = time.monotonic() + _TIMEOUT_S
    sizes: dict[int, int] = {}
    while time.monotonic() < deadline:
        time.sleep(_POLL_S)
        before, sizes = sizes, {rank: _size(file) for rank, file in files.items()}
        if sizes == before and all(sizes.values()):
            break
    taken = {rank: _read(file) for rank, file in files.items()}
    return {rank: Stack(text, _main_thread(text)) for rank, text in taken.items() if text}


def waiting_call(stack: Stack, *, has_device: bool) -> str | None:
    """Return the call of communication that the main thread is in, such as ``all_reduce``.

    Args:
        stack: The stacks of a rank.
        has_device: Whether the ranks compute on an accelerator, whose results are waited for.
    """
    frames = [(path, int(line), name) for path, line, name in _FRAME.findall(stack.main)]
    called = None
    for path, _, name in frames:
        if not _LIBRARY.search(path):
            break
        if _COMMUNICATION.search(path) and _FUNCTION.search(name):
            called = name.strip("_")  # the outermost is what the user called
    if called or not frames:
        return called
    line = _source_line(frames[0][0], frames[0][1])
    found = _CALL.search(line) or (_DEVICE_CALL.search(line) if has_device else None)
    return next(filter(None, found.groups())) if found else None


def waits_in_backward(stack: Stack) -> bool:
    """Tell whether the main thread is in a backward pass: if idle, it waits for others' gradients.

    DistributedDataParallel averages there, without a frame of its own.
    """
    innermost = _FRAME.search(stack.main)
    return innermost is not None and innermost[3] == "_engine_run_backward"


def waits_for_loader(stack: Stack) -> bool:
    """Tell whether the main thread waits for the next batch of a data loader."""
    return any(_LOADER.search(path) for path in _library_paths(stack))


def _library_paths(stack: Stack) -> Iterable[str]:
    """Yield the files of the frames below the innermost one of the user."""
    for path, _, _ in _FRAME.findall(stack.main):
        if not _LIBRARY.search(path):
            return
        yield path


def _main_thread(text: str) -> str:
    # The kernel gives a signal for a process to its main thread, if that takes it.
    threads = text.strip("\n").split("\n\n")
    return next((t for t in threads if t.startswith("Current thread")), threads[-1])


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _read(file: Path) -> str:
    try:
        with open_rank_file(file) as opened:
            text = opened.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return text if len(text) <= _MAX_CHARS else _main_thread(text)[:_MAX_CHARS]


def _source_line(path: str, number: int) -> str:
    """Return a line of a source file, or nothing if there is none."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_SOURCE_BYTES)
    except OSError:
        return ""
    lines = content.split(b"\n")
    return lines[number - 1].decode("utf-8", "replace") if number <= len(lines) else ""
