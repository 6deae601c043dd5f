"""Folders that only one machine has: what is said of them, and what a container would take away.

A job that is handed over may name folders of the machine on which it was written. In a container
such a folder is another one, and what is written there is gone with it, unless a volume is mounted.
"""

import ipaddress
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL

from trainjob.errors import JobError, Problem
from trainjob.job import TrainingJob
from trainjob.job_rules import RUN_ID, written_urls

KEPT = "TRAINJOB_KEPT"
"""Variable in the environment of a pool: the folders of its containers that stay when these go,
with a colon between them."""

_PROCESS = "process"
"""Type of the pools whose runs have the folders of their worker."""


def place_warnings(
    job: TrainingJob, pool_type: str | None, env: Mapping[str, Any]
) -> Iterator[str]:
    """Yield the folders that a job names and a worker may not have, or not keep.

    Args:
        job: The job.
        pool_type: Type of the pool that it is handed to; None: that is not known.
        env: What the pool sets in the environment of the run.
    """
    if pool_type not in (None, _PROCESS):
        yield from _container_warnings(job, _kept_folders(env))
    elif not _is_here(PREFECT_API_URL.value() or ""):
        for field, url in (*_read_urls(job), *written_urls(job)):
            if _local_path(url) is not None:
                yield (
                    f"{field}: {url} is a folder of the machine of the worker, which may not be "
                    "this one; see that it is there, or use a store"
                )


def refuse_lost_places(job: TrainingJob, source: str) -> None:
    """See that what a job writes stays.

    Args:
        job: A job whose paths are absolute.
        source: What the job is called.

    Raises:
        JobError: If not; see `lost_places`.
    """
    if problems := lost_places(job):
        raise JobError(source, problems)


def lost_places(job: TrainingJob) -> list[Problem]:
    """Return what a job writes to folders that are deleted when this run is over.

    Args:
        job: A job whose paths are absolute. Outside of a run all of them stay; of a run that is a
            process of its worker's machine, all but those in the folder that the worker made for
            it, such as the clone of a pull step.
    """
    kept = _kept_folders(os.environ)
    lost = [(field, url) for field, url in written_urls(job) if _is_lost(url, kept)]
    if not lost or flow_run.id is None:
        return []
    if not _is_in_container():
        found = "a folder that the worker made for this run, which is deleted with it"
        do = f"use a whole path, or a store, such as s3://bucket/results/{RUN_ID}/"
        lost = [(field, url) for field, url in lost if _is_of_worker(url)]
        return [Problem(field, url, found, do, id="place-lost") for field, url in lost]
    found = "a folder of the container of this run, which is deleted with it"
    volume = f"mount a volume and name its folder in {KEPT}, in the environment of the work pool"
    do = f"use a store, such as s3://bucket/results/{RUN_ID}/, or {_below(kept) or volume}"
    return [Problem(field, url, found, do, id="place-lost") for field, url in lost]


def _container_warnings(job: TrainingJob, kept: Sequence[PurePosixPath]) -> Iterator[str]:
    for field, url in _read_urls(job):
        if _local_path(url) is not None:
            yield (
                f"{field}: {url} is a folder of the container of the run, not of this machine; see "
                "that its image or a volume has it, or use a store"
            )
    below = f", or {_below(kept)}, which stays" if kept else ""
    for field, url in written_urls(job):
        if _is_lost(url, kept):
            yield (
                f"{field}: {url} is a folder of the container of the run, and gone with it, so the "
                f"run will refuse it; use a store{below}"
            )


def _is_in_container() -> bool:
    with get_client(sync_client=True) as client:
        name = _pool_name(client, UUID(str(flow_run.id)))
        try:
            return name is not None and client.read_work_pool(name).type != _PROCESS
        except ObjectNotFound:
            return False


def _pool_name(client: SyncPrefectClient, run_id: UUID) -> str | None:
    """Return the pool in which a run is; of a flow that another one calls, that of the other."""
    run = client.read_flow_run(run_id)
    if run.work_pool_name is not None or run.parent_task_run_id is None:
        return run.work_pool_name
    caller = client.read_task_run(run.parent_task_run_id).flow_run_id
    return None if caller is None else _pool_name(client, caller)


def _is_of_worker(url: str) -> bool:
    """Tell whether a folder is in the temporary one in which a worker has started this process.

    Nothing but its name says so (3.8.8): ``TemporaryDirectory(suffix="prefect")`` of
    prefect/workers/process.py, for pools that say no other working directory.
    """
    here = Path.cwd()
    made = [folder for folder in (here, *here.parents) if folder.match("tmp*prefect")]
    path = _local_path(url)
    return path is not None and any(path.is_relative_to(folder) for folder in made)


def _is_lost(url: str, kept: Sequence[PurePosixPath]) -> bool:
    path = _local_path(url)
    return path is not None and not any(path.is_relative_to(folder) for folder in kept)


def _kept_folders(env: Mapping[str, Any]) -> list[PurePosixPath]:
    return [_normal(text) for text in str(env.get(KEPT) or "").split(":") if text]


def _below(kept: Sequence[PurePosixPath]) -> str:
    return f"a folder below {' or '.join(map(str, kept))}" if kept else ""


def _local_path(url: str) -> PurePosixPath | None:
    """Return the folder that a url means on the machine that reads it; None: it is elsewhere."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return _normal(url)
    return _normal(rest) if scheme in ("file", "git+file") else None


def _normal(path: str) -> PurePosixPath:
    # POSIX lets two slashes at the start mean something else than one; Linux and macOS do not.
    return PurePosixPath(re.sub("^//", "/", posixpath.normpath(path)))


def _is_here(url: str) -> bool:
    """Tell whether the server, and with it most likely its workers, is on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_urls(job: TrainingJob) -> Iterator[tuple[str, str]]:
    yield "algorithm.code.url", job.algorithm.code.url
    for i, channel in enumerate(job.inputs):
        if channel.url is not None:
            yield f"inputs[{i}].url", channel.url
