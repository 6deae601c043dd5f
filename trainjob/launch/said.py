"""What a rank said about its failure: by an exception, or in its log before it left or gave up.

What it said last tells most; a line from before, such as a warning about something it could do
without, must neither name the failure nor decide the restart. Asked by `trainjob.launch.failure`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainjob.launch.endings import signal_of
from trainjob.launch.rank_log import last_lines
from trainjob.launch.records import ErrorRecord, RankRecords
from trainjob.launch.tracebacks import last_chain, place_raised, without_contexts

_NUM_READ_LINES = 500
"""More than are searched: the stacks of all threads of a rank that aborts take hundreds."""

_NUM_SEARCHED_LINES = 60
_NUM_LAST_LINES = 5
_WITHOUT_WORDS = frozenset({"SIGKILL", "SIGTERM", "SIGSEGV", "SIGILL", "SIGXCPU"})
"""Signals that end a rank whatever it had written; what gives up by SIGABRT or SIGBUS says why."""

_STACK = re.compile(
    r"\s*$|Fatal Python error: (?:Aborted|Bus error)"
    r"|(?:Current thread|Thread) 0x\w+.*\(most recent call first\):"
    r"|  File \".*\", line \d+ in |  <no Python frame>|  \.\.\.$|Extension modules: "
    r"|Exception raised from .*\(most recent call first\):|frame #\d+: "
)
"""Lines of faulthandler and of C++: where a rank was, below what it said."""

_RAISED = re.compile(r"(?:\[\w+\]: ?)*[\w.]*(?:Error|Exception)\b")
"""Start of the line with which a traceback ends, perhaps behind the name of a rank."""

_OF_ANOTHER = re.compile(r"\b(?:CalledProcessError|ChildFailedError|ProcessExitedException)\b")
"""Exceptions of what starts processes, of which one has said why."""

_UNCAUGHT = re.compile(r"\[rank\d+\]:")
"""What torch puts before the traceback of an exception that ends a rank."""

_OF_LAUNCHER = re.compile(
    r"\bexitcode\b|\b(?:exit|return)(?:ed|s)?\b.{0,20}\b(?:code|status|string)\b"
    r"|To enable traceback see",
    re.IGNORECASE,
)
"""What else torchrun, mpirun, srun and DeepSpeed say at the end, after the exception of a rank."""

_NATIVE = re.compile(
    r"terminate called|\s*what\(\):|(?:\[\w+\]: ?)*\[[EF][ \d]|.{0,100}\bWatchdog caught\b"
)
"""Start of a line by which native code says that it gives up; in brackets glog's errors."""


@dataclass(frozen=True, slots=True)
class Said:
    """What was said about a failure.

    Attributes:
        texts: The last words, the most telling text first.
        earlier: What was written up to them.
    """

    texts: tuple[str, ...] = ()
    earlier: str = ""


def said_by(rank: RankRecords, code: int, log_file: Path) -> Said:
    """Return what a rank said about its failure.

    Args:
        rank: What is known of it.
        code: Its exit code, or the negative number of the signal that ended it.
        log_file: What it wrote.
    """
    error, signal = rank.error, signal_of(code)
    if signal in _WITHOUT_WORDS:
        return Said()
    if error is None or (error.type == "SystemExit" and not error.message):
        lines = without_contexts(last_lines(log_file, _NUM_READ_LINES))
        telling = [line for line in lines if not _STACK.match(line)][-_NUM_SEARCHED_LINES:]
        return _before_abort(telling) if signal else _before_exit(telling)
    return Said((_own_words(error), _causes(error)))


def _before_exit(lines: Sequence[str]) -> Said:
    """Return what was said before a rank left with a code."""
    last = lines[-_NUM_LAST_LINES:]
    final = _from_last_error(last)
    if _has_left_by(final, lines):
        caused = filter(_is_error, last_chain(lines))
        return Said(("\n".join(final), "\n".join(caused)))
    # What starts ranks itself, as a command may do, writes much after the exception of one. Other
    # exceptions from before the last words were survived.
    is_of_launcher = any(_OF_ANOTHER.search(line) or _OF_LAUNCHER.search(line) for line in last)
    raised = [
        line
        for line in lines[:-_NUM_LAST_LINES]
        if _is_error(line) and (is_of_launcher or _UNCAUGHT.match(line))
    ]
    texts = ("\n".join(final), "\n".join(last), "\n".join([*raised, *last]))
    return Said(tuple(dict.fromkeys(texts)), "\n".join(lines))


def _has_left_by(final: Sequence[str], lines: Sequence[str]) -> bool:
    """Tell whether the last exception is that of a rank, whatever was survived before it."""
    if not final or len(final) > len(last_chain(lines)):
        return False
    is_ignored = any(line.startswith("Exception ignored") for line in lines)
    return bool(_RAISED.match(final[0])) and not _OF_ANOTHER.search(final[0]) and not is_ignored


def _before_abort(lines: Sequence[str]) -> Said:
    """Return what was said before a signal: exceptions from long before were survived."""
    native = [line for line in lines[:-_NUM_LAST_LINES] if _NATIVE.match(line)]
    return Said(("\n".join([*native, *_from_last_error(lines[-_NUM_LAST_LINES:])]),))


def _from_last_error(lines: Sequence[str]) -> Sequence[str]:
    """Return the lines from the last one on that tells of an error; all if none does."""
    starts = [index for index, line in enumerate(lines) if _is_error(line)]
    return lines[starts[-1] :] if starts else lines


def _is_error(line: str) -> bool:
    return bool(_RAISED.match(line) or _NATIVE.match(line))


def _own_words(error: ErrorRecord) -> str:
    said = ": ".join(part for part in (error.type, error.message) if part)
    # The message of a process pool or a DataLoader holds the traceback of its worker.
    first, *more = said.split("\n")
    return "\n".join([first, *without_contexts(more)])


def _causes(error: ErrorRecord) -> str:
    """Return the exceptions that an exception came from, or that a group of them holds."""
    lines = without_contexts(error.traceback.splitlines())
    told = [line for line in lines if line[:1].strip()]
    # Python raises some without a word, such as EOFError, and then the place has to tell.
    place = None if error.message else place_raised(error.traceback)
    return "\n".join([*told, f"{error.type} raised in {place}"] if place else told)
