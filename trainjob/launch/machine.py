"""How big this machine is for us: cores and memory that the container or cgroup leaves.

On a container with 2 of 64 cores, the affinity says 64, and threads for 64 would crawl.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUP_MOUNT = Path("/sys/fs/cgroup")


def num_cores(cgroup_mount: Path = _CGROUP_MOUNT) -> int:
    """Return how many cores this process may use, by affinity and cgroup quota."""
    cores = len(os.sched_getaffinity(0))
    for text in _cgroup_values("cpu.max", cgroup_mount):
        quota, _, period = text.partition(" ")
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def memory_bytes(cgroup_mount: Path = _CGROUP_MOUNT) -> int:
    """Return how much memory this process may use, by machine and cgroup limit."""
    size_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for text in _cgroup_values("memory.max", cgroup_mount):
        if text != "max":
            size_bytes = min(size_bytes, int(text))
    return size_bytes


def _cgroup_values(name: str, mount: Path) -> Iterator[str]:
    """Yield the setting `name` of our cgroup and its ancestors (cgroup v2)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder = mount / own.lstrip("/")
    for level in (folder, *folder.parents):
        if not level.is_relative_to(mount):
            return
        try:
            yield (level / name).read_text().strip()
        except OSError:
            continue
