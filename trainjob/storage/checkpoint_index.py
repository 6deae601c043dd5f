"""What of a checkpoint folder in a store counts: one file that names a consistent, verified set.

``_trainjob/checkpoints.json`` is replaced as a whole, so that a reader sees the set before or after
a change, never a mixture. Files that it does not name are half sent or no longer wanted, and mean
nothing. A file that is overwritten is kept in the place that it had until the index names the new
content, which is in the other of two places until then: below the folder itself, or below
``_trainjob/new/``.
"""

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainjob.errors import CheckpointsOfAnother, CorruptData, StoreNotFound
from trainjob.storage.failures import failure
from trainjob.storage.local import PARTIAL
from trainjob.storage.receipt import OWN_FOLDER
from trainjob.storage.store import Store

INDEX = f"{OWN_FOLDER}checkpoints.json"
OTHER_PLACE = f"{OWN_FOLDER}new/"


class SavedFile(BaseModel):
    """One file that was verified in the store."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

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
    """The files of a checkpoint folder that count, and whose they are."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    format: Literal[1] = 1
    """Version of this file's form."""

    job: str
    """The job that the folder belongs to."""

    run_id: str
    """The run that writes to it."""

    updated: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """When this was written, UTC, ISO 8601."""

    files: tuple[SavedFile, ...] = ()
    """What a restore brings back."""

    pending: tuple[str, ...] = ()
    """Where, below the url, there may be something of ours that does not count: it is being sent,
    or about to be deleted."""


def read_index(store: Store) -> CheckpointIndex | None:
    """Return the index of the folder; None if there is none.

    Raises:
        CorruptData: If it cannot be read.
    """
    try:
        return CheckpointIndex.model_validate_json(store.read(INDEX))
    except StoreNotFound:
        return None
    except ValidationError as error:
        found = f"an index of checkpoints ({INDEX}) that cannot be read"
        do = "use the version of trainjob that wrote it, or another folder"
        raise failure(CorruptData, store.url, found, do) from error


def index_of_job(store: Store, job: str) -> CheckpointIndex | None:
    """Return the index of a folder that `job` may use; None if nothing is in it.

    Raises:
        CheckpointsOfAnother: If the folder belongs to another job or to other programs.
        CorruptData: If the index cannot be read.
    """
    index = read_index(store)
    if index is None:
        _refuse_foreign(store)
    elif index.job != job:
        do = f"use another folder, or name the job {index.job!r} to go on from them"
        found = f"not empty but with checkpoints of the job {index.job!r}"
        raise failure(CheckpointsOfAnother, store.url, found, do)
    return index


def refuse_other_run(store: Store, index: CheckpointIndex, run_id: str) -> None:
    """See that the run that writes to the folder still is `run_id`.

    Raises:
        CheckpointsOfAnother: Naming the other run.
    """
    if index.run_id != run_id:
        found = f"in use by the run {index.run_id}, which took it over from {run_id}"
        do = "let one run at a time use it, or put {run_id} into the url"
        raise failure(CheckpointsOfAnother, store.url, found, do)


def _refuse_foreign(store: Store) -> None:
    paths = [entry.path for entry in store.list_files().files]
    foreign = [path for path in paths if not path.startswith(PARTIAL)]
    found = None
    if foreign:
        found = f"not empty but {len(foreign)} files, such as {min(foreign)!r}"
    elif not paths and store.is_file():
        found = "a file of that name"
    if found:
        do = "use an empty folder, or one with checkpoints of this job"
        raise failure(CheckpointsOfAnother, store.url, found, do)
