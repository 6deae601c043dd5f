"""How a process ended, in words: exit codes, and signals by their names."""

import signal

OFTEN_MEMORY = "often out of memory"
"""What SIGKILL means where the kernel does not tell."""

_SIGNAL_HINTS = {
    "SIGKILL": OFTEN_MEMORY,
    "SIGSEGV": "invalid memory access in native code",
    "SIGBUS": "often a full /dev/shm or disk",
    "SIGABRT": "native code gave up",
    "SIGILL": "an instruction that this processor does not have",
    "SIGTERM": "which did not come from this run",
}


def ending(code: int, first: str = "") -> str:
    """Return how a process ended as the rest of a sentence.

    Args:
        code: Exit code, or the negative number of the signal that ended it.
        first: `` first`` if others failed after it.
    """
    if code < 0:
        name = signal_name(-code)
        hint = _SIGNAL_HINTS.get(name)
        return f"was killed{first} by {name}" + (f" ({hint})" if hint else "")
    of_signal = signal_of(code)
    return f"failed{first} with exit code {code}" + (f", as after {of_signal}" if of_signal else "")


def signal_of(code: int | None) -> str | None:
    """Return the signal that an exit code stands for: one a shell reports is 128 + its number."""
    if code is None:
        return None
    if code < 0:
        return signal_name(-code)
    return signal_name(code - 128) if 128 < code <= 128 + 64 else None


def signal_name(number: int) -> str:
    """Return the name of a signal, such as ``SIGKILL``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
