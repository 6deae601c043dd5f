"""Whether bubblewrap works on this machine, which only trying shows.

Some kernels and containers forbid what it needs. Asked by `mounts` and `sandbox`.
"""

import subprocess
from collections.abc import Sequence
from functools import cache

INSTALL_BWRAP = "install bubblewrap (apt-get install bubblewrap), which needs no root to run"

_TRY_TIMEOUT_S = 10.0


class _Refused(Exception):
    """A command that did not end well."""


def refusal(argv: Sequence[str]) -> str | None:
    """Return why a command does not run to a good end, or None if it does, or did before.

    What failed is tried again: the machine may have been too busy.
    """
    try:
        _run(tuple(argv))
    except _Refused as error:
        return str(error)
    return None


@cache  # which keeps no exception
def _run(argv: tuple[str, ...]) -> None:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TRY_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Refused(str(error)) from error
    if done.returncode:
        raise _Refused(done.stderr.strip() or f"exit code {done.returncode}")
