"""What the supervisor saw of a training that took more memory than its job has."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainjob.launch.rank_files import UNREADABLE, open_rank_file
from trainjob.values import format_size

_MAX_RANKS = 4


@dataclass(frozen=True, slots=True)
class OverMemory:
    """A training that took too much memory.

    Attributes:
        limit_bytes: What its job has.
        used_bytes: What all its processes took.
        by_rank: What the processes of each rank took.
    """

    limit_bytes: int
    used_bytes: int
    by_rank: Mapping[int, int]

    @property
    def most(self) -> int | None:
        """The rank that took most; None if none had begun."""
        return max(self.by_rank, key=self.by_rank.__getitem__, default=None)

    @property
    def headline(self) -> str:
        """One line: how much, of how much, and by whom."""
        used, limit = format_size(self.used_bytes), format_size(self.limit_bytes)
        said = f"the ranks took {used} of memory, and their flavor has {limit}"
        ranks = sorted(self.by_rank, key=self.by_rank.__getitem__, reverse=True)
        if not ranks:
            return said
        shown = [f"rank {rank} {format_size(self.by_rank[rank])}" for rank in ranks[:_MAX_RANKS]]
        if len(ranks) > _MAX_RANKS:
            rest = sum(self.by_rank[rank] for rank in ranks[_MAX_RANKS:])
            shown.append(f"{len(ranks) - _MAX_RANKS} more {format_size(rest)}")
        launcher_bytes = self.used_bytes - sum(self.by_rank.values())
        return f"{said}: {', '.join(shown)}, their launcher {format_size(launcher_bytes)}"


def read_over_memory(records_dir: Path) -> OverMemory | None:
    """Return what the supervisor wrote of a training that took too much, or None."""
    try:
        with open_rank_file(records_dir / "memory.json") as opened:
            said = json.loads(opened.read())
        by_rank = {int(rank): int(used) for rank, used in said["ranks"]}
        return OverMemory(int(said["limit_bytes"]), int(said["used_bytes"]), by_rank)
    except (OSError, *UNREADABLE):  # not there, or cut short by a full disk
        return None
