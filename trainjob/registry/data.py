"""Looks at the data of a new version: finds its fingerprint and what is in it.

Called by `trainjob.registry.register` for datasets and models. The data is brought once, through
the cache of the machine, so that a run finds it there.
"""

import tempfile
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from trainjob.errors import JobError, Problem
from trainjob.inputs import unpacking_of
from trainjob.job import InputChannel, TrainingJob
from trainjob.registry.contents import Contents, ListedFile, contents_of
from trainjob.registry.file_list import keep_list
from trainjob.registry.registry import Registry
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.hold import release
from trainjob.storage.cache.snapshot import Snapshot
from trainjob.storage.cache.source import find_source
from trainjob.storage.settings import StoreSettings
from trainjob.storage.stage import stage_channel

_STAND_IN = {"kind": "command", "code": {"url": "."}, "command": "true"}


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where the data of a new version is.

    Attributes:
        url: A folder or an archive, as ``inputs[].url`` of a job; a path may be relative.
        unpack: Whether one archive is unpacked.
        archive_names: How names in an archive are written.
        expect: Its fingerprint, if that is known; then the data is not read.
        store: Name of the ObjectStore block that reaches it; None: the AWS_* environment does.
    """

    url: str
    unpack: Literal["auto", "always", "never"] = "auto"
    archive_names: str = "utf-8"
    expect: str | None = None
    store: str | None = None


@dataclass(frozen=True, slots=True)
class FoundData:
    """What was found about data.

    Attributes:
        facts: Fields of a saved dataset or model.
        is_split: True if there are training and validation data; None: that cannot be seen.
    """

    facts: dict[str, Any]
    is_split: Literal[True] | None = None


def channel_of(label: str, name: str, source: DataSource) -> InputChannel:
    """Return the input that a job would have for the data.

    Raises:
        JobError: If it could have none.
    """
    channel = {"name": "data_url", "url": source.url, "unpack": source.unpack}
    channel |= {"archive_names": source.archive_names}
    channel |= {"expect": source.expect} if source.expect else {}
    try:
        job = TrainingJob.parse({"name": name, "algorithm": _STAND_IN, "inputs": [channel]})
    except JobError as error:
        problems = [
            replace(problem, field=problem.field.removeprefix("inputs[0]."))
            for problem in error.problems
        ]
        raise JobError(label, problems) from error
    return job.resolved(Path.cwd()).inputs[0]


def store_of(url: str, store: str | None) -> str | None:
    """Return the store that a version keeps: that of its ``s3://`` url."""
    return store if url.startswith("s3://") else None


def read_data(
    registry: Registry, label: str, channel: InputChannel, settings: StoreSettings | None
) -> FoundData:
    """Return what a version says of data: its place, fingerprint and contents.

    Args:
        registry: Where the list of the files is kept.
        label: What messages call the version.
        channel: The input that a job would have for the data.
        settings: How to reach an object store; absent: the AWS_* environment.

    Raises:
        JobError: If it is of a kind that is not read here.
        StoreError: If it cannot be read, or the registry cannot be written.
    """
    facts: dict[str, Any] = {
        "url": channel.url,
        "unpack": channel.unpack,
        "archive_names": channel.archive_names,
    }
    if channel.expect:
        # That there is something is looked at all the same.
        find_source(channel.url, settings, unpacking_of(channel))
        return FoundData(facts | {"fingerprint": channel.expect, "is_read": False})
    files, contents, found = _staged(label, channel, settings)
    _refuse_carbondata(label, channel.url, files)
    keep_list(registry, found["fingerprint"], files)
    has_both = {"train", "val"} <= contents.splits.keys()
    facts |= found | {"is_read": True, "contents": contents}
    return FoundData(facts, True if has_both else None)


def _staged(
    label: str, channel: InputChannel, settings: StoreSettings | None
) -> tuple[list[ListedFile], Contents, dict[str, Any]]:
    """Bring the data, look at it, and let go of it."""
    cache, holder = Cache.of_machine(), f"register.{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory(prefix="trainjob-register-") as scratch:
        try:
            staged = stage_channel(
                channel.url,
                Path(scratch) / "data",
                settings,
                label=label,
                holder=holder,
                unpacking=unpacking_of(channel),
            )
            snapshot = _held(cache, holder)
            lines = snapshot.files()
            files = [ListedFile(line.path, line.size_bytes, line.sha256) for line in lines]
            contents = contents_of(files, snapshot.data)
        finally:
            release(cache, holder)
    found = {"num_files": staged.num_files, "size_bytes": staged.size_bytes}
    return files, contents, found | {"fingerprint": staged.fingerprint}


def _held(cache: Cache, holder: str) -> Snapshot:
    """Return the one snapshot that is held for somebody."""
    return next(
        snapshot
        for snapshot in cache.snapshots()
        if any(lease.holder == holder for lease in snapshot.leases())
    )


def _refuse_carbondata(label: str, url: str, files: list[ListedFile]) -> None:
    """Refuse the files of CarbonData, which no script here reads.

    Raises:
        JobError: If there are any.
    """
    found = next((file.path for file in files if file.path.endswith(".carbondata")), None)
    if found is not None:
        asked = f"data that is read here at {url!r}"
        do = "export it from CarbonData to files such as Parquet or CSV, and register these"
        raise JobError(label, [Problem("url", asked, f"CarbonData: {found!r}", do)])
