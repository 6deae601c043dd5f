"""What this machine has for a job beyond what `trainjob.launch.preflight` refuses.

Space for the inputs, shared memory, cores, and limits that contradict one another. Nothing is
copied; the listing of a store tells the size.
"""

import re
import shutil
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from trainjob.check.script import Examined
from trainjob.errors import Level, Problem, StoreError
from trainjob.inputs import unpacking_of
from trainjob.job import InputChannel, TrainingJob
from trainjob.launch.machine import num_cores
from trainjob.storage.cache.evict import removable
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.source import find_source
from trainjob.storage.settings import StoreSettings
from trainjob.values import counted, format_duration, format_size
from trainjob.workspace import workspaces_dir

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at only
_SHARED_MEMORY_BYTES = 2**30
"""What ModelArts' pre-check of a machine asks of /dev/shm; docker gives 64 MiB."""


def space_problems(job: TrainingJob, settings: StoreSettings | None) -> Examined:
    """Return whether what the inputs add to the disks of this machine fits.

    What is in the cache already needs no space, and what no job uses there makes room. An input
    that cannot be listed is told by another check.
    """
    found = Examined()
    needs: dict[Path, int] = defaultdict(int)
    try:
        cache = Cache.of_machine()
        for i, channel in enumerate(job.inputs):
            with suppress(StoreError):
                _add_need(f"inputs[{i}].url", channel, settings, cache, needs, found)
        if not any(needs.values()):
            return found
        room = sum(unused.size_bytes for unused in removable(cache))
    except (StoreError, OSError):
        return found
    found.problems += _flavor_space_problems(job, sum(needs.values()))
    for folder, size_bytes in needs.items():
        disk = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists()))
        free = disk.free + (room if folder == cache.root else 0)
        if size_bytes > free:
            text = f"{format_size(free)} free on the disk of {str(folder)!r}"
            do = "make space, or set TRAINJOB_CACHE_DIR and TRAINJOB_WORKDIR to a larger disk"
            level: Level = "error" if size_bytes > disk.total else "warning"
            asked = f"{format_size(size_bytes)} of inputs"
            problem = Problem("inputs", asked, text, do, id="inputs-space", level=level)
            found.problems.append(problem)
    return found


def _flavor_space_problems(job: TrainingJob, size_bytes: int) -> list[Problem]:
    """Return whether the inputs are larger than the disk that the flavor promises."""
    flavor = job.resources.flavor
    if flavor is None or flavor.disk_gib is None or size_bytes <= flavor.disk_gib * 2**30:
        return []
    asked = f"{format_size(size_bytes)} of inputs"
    text = f"{flavor.disk_gib} GiB of disk in the flavor {flavor}"
    do = "use a flavor with a larger disk, or mode: stream"
    return [Problem("resources.flavor", asked, text, do, id="flavor-space")]


def _add_need(
    field: str,
    channel: InputChannel,
    settings: StoreSettings | None,
    cache: Cache,
    needs: dict[Path, int],
    found: Examined,
) -> None:
    is_local = "://" not in channel.url or channel.url.startswith("file://")
    path = Path(channel.url.removeprefix("file://"))
    is_linked = channel.mode == "link" and is_local and not path.is_file()
    is_away = settings is None and channel.url.startswith("s3://")
    if channel.is_streamed or is_linked or is_away:
        return
    if not is_local and not channel.url.startswith("s3://"):
        found.not_checked.append(f"whether {field} fits the free disk: its listing may take long")
        return
    source = find_source(channel.url, settings, unpacking_of(channel))
    size_bytes = source.listing.size_bytes
    if source.place is None and cache.find(source.key) is None:
        needs[cache.root] += size_bytes
        if source.unpacks:
            found.not_checked.append(f"how large {field} becomes when it is unpacked")
    if channel.mode == "copy":
        needs[workspaces_dir()] += size_bytes


def machine_problems(job: TrainingJob) -> list[Problem]:
    """Return what of the job goes badly with this machine, or with itself; all are warnings."""
    processes, flavor, cores = job.resources.processes_per_node, job.resources.flavor, num_cores()
    problems = []
    where = "on this machine"
    if flavor is not None and flavor.cores < cores:
        cores, where = flavor.cores, f"of the flavor {flavor}"
    if processes > cores:
        do = "start fewer ranks, which share the cores"
        found = f"{counted(cores, 'core')} {where}"
        problems.append(
            _warning("resources.processes_per_node", f"{processes} ranks", found, do, "cores")
        )
    return [*problems, *_limit_problems(job)]


def shared_memory_problems(job: TrainingJob, code_dir: Path) -> list[Problem]:
    """Return whether there is the shared memory by which processes of a job hand data over.

    Args:
        job: The job; several ranks of it on cuda have NCCL, which uses shared memory.
        code_dir: The code; workers of a torch DataLoader in it use shared memory.
    """
    try:
        total = shutil.disk_usage(_SHARED_MEMORY).total
    except OSError:
        return []
    processes, device = job.resources.processes_per_node, job.resources.device
    users = ["num_workers in the code"] if _uses_workers(code_dir) else []
    users += [f"{processes} ranks on {device}"] if processes > 1 and device == "cuda" else []
    if total >= _SHARED_MEMORY_BYTES or not users:
        return []
    found = f"{format_size(total)} on this machine"
    do = "start the container with --shm-size=1g or more"
    do += ", or use num_workers=0" if len(users) == 1 and device != "cuda" else ""
    asked = f"{format_size(_SHARED_MEMORY_BYTES)} of /dev/shm, for {' and '.join(users)}"
    return [_warning("resources", asked, found, do, "shared-memory")]


def _uses_workers(code_dir: Path) -> bool:
    pattern = re.compile(rb"\bnum_workers\s*=\s*[1-9a-zA-Z]")
    return any(pattern.search(file.read_bytes()) for file in code_dir.rglob("*.py"))


def _limit_problems(job: TrainingJob) -> list[Problem]:
    limits = job.limits
    if limits.auto_stop is None:
        return []
    stop = format_duration(limits.auto_stop)
    problems = []
    if limits.grace >= limits.auto_stop:
        found = f"limits.auto_stop {stop}, which is no longer"
        asked = f"grace {format_duration(limits.grace)}"
        do = "write a shorter grace, or a later auto_stop"
        problems.append(_warning("limits.grace", asked, found, do, "limits"))
    if limits.stall is not None and limits.stall >= limits.auto_stop:
        found = f"limits.auto_stop {stop}, before which nothing can stall so long"
        asked = f"stall {format_duration(limits.stall)}"
        do = "write a shorter stall, or remove it"
        problems.append(_warning("limits.stall", asked, found, do, "limits"))
    return problems


def _warning(field: str, asked: str, found: str, do: str, rule: str) -> Problem:
    return Problem(field, asked, found, do, id=f"machine-{rule}", level="warning")
