"""Whose a checkpoint folder in a store is: one small file that only who takes it over writes.

``_trainjob/owner.json`` names the job and the run. Who wrote it last owns the folder, and whatever
an earlier owner still writes does not change that: it writes to its own index alone, see
`checkpoint_index`. No store has to know conditional writes for this.
"""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainjob.errors import CheckpointsOfAnother, CorruptData, StoreNotFound
from trainjob.storage.failures import failure
from trainjob.storage.listing import Entry
from trainjob.storage.local import PARTIAL
from trainjob.storage.own_files import OWN_FOLDER
from trainjob.storage.store import Store, is_known_file

OWNER = f"{OWN_FOLDER}owner.json"
_NUM_LOOKS = 5


class CheckpointClaim(BaseModel):
    """The run that saves to a checkpoint folder."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    """Version of this file's form."""

    job: str
    """The job that the folder belongs to."""

    run_id: str
    """The run that took it over last."""

    claimed: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """When it did, UTC, ISO 8601."""


def read_claim(store: Store) -> CheckpointClaim | None:
    """Return who owns the folder; None if nobody does.

    Raises:
        CorruptData: If that cannot be read.
    """
    try:
        return CheckpointClaim.model_validate_json(store.read(OWNER))
    except StoreNotFound:
        return None
    except ValidationError as error:
        found = f"a claim of checkpoints ({OWNER}) that cannot be read"
        do = "use the version of trainjob that wrote it, or another folder"
        raise failure(CorruptData, store.url, found, do) from error


def claim_of_job(store: Store, job: str) -> CheckpointClaim | None:
    """Return who owns a folder that `job` may use; None if nothing is in it.

    Raises:
        CheckpointsOfAnother: If the folder belongs to another job or to other programs.
        CorruptData: If the claim cannot be read.
    """
    claim = read_claim(store)
    if claim is None:
        _refuse_foreign(store)
    elif claim.job != job:
        do = f"use another folder, or name the job {claim.job!r} to go on from them"
        found = f"not empty but with checkpoints of the job {claim.job!r}"
        raise failure(CheckpointsOfAnother, store.url, found, do)
    return claim


def refuse_other_run(store: Store, claim: CheckpointClaim, run_id: str) -> None:
    """See that the run that owns the folder still is `run_id`.

    Raises:
        CheckpointsOfAnother: Naming the other run.
    """
    if claim.run_id != run_id:
        found = f"in use by the run {claim.run_id}, which took it over from {run_id}"
        do = "let one run at a time use it, or put {run_id} into the url"
        raise failure(CheckpointsOfAnother, store.url, found, do)


def write_claim(store: Store, job: str, run_id: str) -> None:
    """Make `run_id` the owner of the folder."""
    claim = CheckpointClaim(job=job, run_id=run_id)
    store.write(OWNER, claim.model_dump_json(indent=1).encode())


def files_in(store: Store) -> dict[str, Entry]:
    """Return the files of a folder by path, while another run may be writing to it.

    A folder of a disk cannot be listed when a file vanishes in the middle, as the temporary ones of
    the other run do; then it is listed again.
    """
    for _ in range(_NUM_LOOKS - 1):
        with suppress(StoreNotFound):
            return {entry.path: entry for entry in store.list_files().files}
    return {entry.path: entry for entry in store.list_files().files}


def _refuse_foreign(store: Store) -> None:
    paths = files_in(store)
    foreign = [path for path in paths if not path.startswith(PARTIAL)]
    found = None
    if foreign:
        found = f"not empty but {len(foreign)} files, such as {min(foreign)!r}"
    elif not paths and is_known_file(store):
        found = "a file of that name"
    if found:
        do = "use an empty folder, or one with checkpoints of this job"
        raise failure(CheckpointsOfAnother, store.url, found, do)
