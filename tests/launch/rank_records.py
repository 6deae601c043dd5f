"""Records of ranks as the bootstrap writes them, made by hand."""

from trainjob.launch.records import ErrorRecord, ExitRecord, RankRecords
from trainjob.launch.supervision import Finished

ENDED = Finished("finished", 1)


def error(
    message: str = "no such class",
    at: int = 10,
    kind: str = "ValueError",
    code: int = 1,
    traceback: str = "",
    log_offset: int = 0,
) -> ErrorRecord:
    return ErrorRecord(kind, message, traceback, code, at, log_offset)


def ended(
    code: int = 1, at: int = 20, told: int | None = None, *, orphaned: bool = False
) -> ExitRecord:
    return ExitRecord(code=code, time_ns=at, terminated_ns=told, orphaned=orphaned)


def ranks(*records: tuple[ErrorRecord | None, ExitRecord | None]) -> list[RankRecords]:
    return [RankRecords(i, True, failed, exited) for i, (failed, exited) in enumerate(records)]


def none_began(world_size: int) -> list[RankRecords]:
    return [RankRecords(rank, False, None, None) for rank in range(world_size)]
