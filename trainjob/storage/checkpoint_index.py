"""What of a checkpoint folder in a store counts: one file that names a consistent, verified set.

The index is replaced as a whole, so that a reader sees the set before or after a change, never a
mixture. Files that it does not name are half sent or no longer wanted, and mean nothing. A file
that is overwritten is kept in the place that it had until the index names the new content, which is
in the other of two places until then: below the folder itself, or below ``_trainjob/new/``.

Every run that takes the folder over (`checkpoint_claim`) begins an index of its own,
``_trainjob/checkpoints/NNNNNNNN-RUN.json``, with the next number, as a copy of the one before. So
nobody else writes to it, and what an earlier owner writes too late changes nothing.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainjob.errors import CorruptData, StoreNotFound
from trainjob.storage.checkpoint_claim import claim_of_job, files_in
from trainjob.storage.failures import failure
from trainjob.storage.own_files import OWN_FOLDER
from trainjob.storage.store import Store

INDEXES = f"{OWN_FOLDER}checkpoints/"
OTHER_PLACE = f"{OWN_FOLDER}new/"
_NAME = re.compile(rf"{INDEXES}(\d{{8,}})-(.+)\.json")


class SavedFile(BaseModel):
    """One file that was verified in the store."""

    model_config = ConfigDict(frozen=True)

    path: str
    """Where it is below the checkpoint folder of a run."""

    size_bytes: int
    """Its size."""

    sha256: str
    """Its digest."""

    mtime_ns: int
    """When it was written. Scripts take the newest of several files by this."""

    place: Literal["", "_trainjob/new/"] = ""
    """The part of the folder in the store that holds it."""

    @property
    def key(self) -> str:
        """Where it is below the url."""
        return self.place + self.path


class CheckpointIndex(BaseModel):
    """The files of a checkpoint folder that count."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    """Version of this file's form."""

    updated: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """When this was written, UTC, ISO 8601."""

    files: tuple[SavedFile, ...]
    """What a restore brings back."""

    links: dict[str, str] = Field(default_factory=dict)
    """Files and folders among these that were links, by path: where each led from its folder."""

    pending: tuple[str, ...] = ()
    """Where, below the url, there may be something of ours that does not count: it is being sent,
    or about to be deleted."""


def next_index(paths: Iterable[str], run_id: str) -> str:
    """Return where a run that takes over a folder with the files `paths` begins its index."""
    number = max((int(match[1]) for match in map(_NAME.fullmatch, paths) if match), default=0)
    return f"{INDEXES}{number + 1:08d}-{quote(run_id, safe='')}.json"


def index_paths(paths: Iterable[str], owner: str) -> list[str]:
    """Return the indexes among the files of a folder, the one that counts first.

    That is the one of the run that owns the folder. It has none yet if it was killed when it took
    the folder over; then it is the newest one of the runs before it.

    Args:
        paths: The files of the folder.
        owner: The id of the run.
    """
    found = [match for match in map(_NAME.fullmatch, paths) if match]
    found.sort(key=lambda match: (match[2] == quote(owner, safe=""), int(match[1])), reverse=True)
    return [match[0] for match in found]


def is_index_of(path: str, run_id: str) -> bool:
    """Say whether a file of a folder is an index that this run began."""
    match = _NAME.fullmatch(path)
    return match is not None and match[2] == quote(run_id, safe="")


def index_of_job(store: Store, job: str) -> CheckpointIndex | None:
    """Return what counts in a folder that `job` may use; None if nothing was saved yet.

    Raises:
        CheckpointsOfAnother: If the folder belongs to another job or to other programs.
        CorruptData: If the claim or the index cannot be read.
    """
    claim = claim_of_job(store, job)
    found = standing_index(store, files_in(store), claim.run_id) if claim else None
    return found[1] if found else None


def standing_index(
    store: Store, paths: Iterable[str], owner: str
) -> tuple[str, CheckpointIndex] | None:
    """Return what counts in a folder, and where that is written; None if nothing was saved yet.

    Args:
        store: The folder.
        paths: Its files.
        owner: The run that owns it.

    Raises:
        CorruptData: If it cannot be read.
    """
    for path in index_paths(paths, owner):
        try:
            return path, CheckpointIndex.model_validate_json(store.read(path))
        except StoreNotFound:  # a run that took over since has deleted it, after it wrote its own
            continue
        except ValidationError as error:
            found = f"an index of checkpoints ({path}) that cannot be read"
            do = "use the version of trainjob that wrote it, or another folder"
            raise failure(CorruptData, store.url, found, do) from error
    return None
