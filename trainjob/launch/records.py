"""What every rank recorded about itself: that it began, how it failed, how it ended.

Written by `bootstrap` as one JSON file each, complete or absent; read here after the launcher
ended. Times are those of the machine in nanoseconds, so that the first failure can be told.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainjob.launch.rank_files import open_rank_file
from trainjob.values import storable

LAUNCH_ERROR = "trainjob.LaunchError"
"""Type of an error record whose program could not even be started (`bootstrap` writes it)."""


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """How a script failed, by its own account.

    Attributes:
        type: Class of the exception, such as ``ValueError``.
        message: Its text.
        traceback: Frames of the user, and the one that raised.
        code: The exit code it leads to.
        time_ns: When it was raised.
        log_offset: Size of the rank's log before the error was printed.
    """

    type: str
    message: str
    traceback: str
    code: int
    time_ns: int
    log_offset: int


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How the process of a rank ended, by its parent's account.

    Attributes:
        code: Exit code, or the negative number of the signal that ended it.
        time_ns: When.
        terminated_ns: When it was first asked to leave by SIGTERM, if it was.
        orphaned: Whether it was killed because the launcher died.
    """

    code: int
    time_ns: int
    terminated_ns: int | None
    orphaned: bool


@dataclass(frozen=True, slots=True)
class RankRecords:
    """All that is known of one rank.

    Attributes:
        rank: Which one.
        began: Whether its program was started.
        error: How its script failed.
        exit: How its process ended.
        done_ns: When its script came to its end without an error.
    """

    rank: int
    began: bool
    error: ErrorRecord | None
    exit: ExitRecord | None
    done_ns: int | None = None


def read_records(records_dir: Path, world_size: int) -> list[RankRecords]:
    """Return the records of all ranks, in their order."""
    return [_read_rank(records_dir, rank) for rank in range(world_size)]


def _read_rank(records_dir: Path, rank: int) -> RankRecords:
    error = _read(records_dir / f"error-{rank}.json")
    ended = _read(records_dir / f"exit-{rank}.json")
    done = _read(records_dir / f"done-{rank}.json")
    return RankRecords(
        rank=rank,
        began=(records_dir / f"begin-{rank}.json").exists(),
        error=ErrorRecord(**error) if error else None,
        exit=ExitRecord(**ended) if ended else None,
        done_ns=done["time_ns"] if done else None,
    )


def _read(file: Path) -> Any:
    try:
        with open_rank_file(file) as opened:
            return json.loads(opened.read(), object_hook=_storable)
    except (OSError, ValueError):  # not there, or a script has written into it
        return None


def _storable(record: dict[str, Any]) -> dict[str, Any]:
    return {
        key: storable(value) if isinstance(value, str) else value for key, value in record.items()
    }
