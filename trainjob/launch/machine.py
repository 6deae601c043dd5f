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
    for quota, period in _cpu_quotas(cgroup_mount):
        cores = min(cores, math.ceil(quota / period))
    return max(1, cores)


def memory_bytes(cgroup_mount: Path = _CGROUP_MOUNT) -> int:
    """Return how much memory this process may use, by machine and cgroup limit."""
    size_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [
        *_settings("memory.max", cgroup_mount, controller=""),
        *_settings("memory.limit_in_bytes", cgroup_mount, controller="memory"),
    ]
    return min([size_bytes, *(int(text) for text in limits if text != "max")])


def _cpu_quotas(mount: Path) -> Iterator[tuple[int, int]]:
    """Yield the time on cores that we may use in each period, both in microseconds."""
    for text in _settings("cpu.max", mount, controller=""):
        quota, _, period = text.partition(" ")
        if quota != "max":
            yield int(quota), int(period)
    quotas = _settings("cpu.cfs_quota_us", mount, controller="cpu")
    for quota, period in zip(
        quotas, _settings("cpu.cfs_period_us", mount, controller="cpu"), strict=False
    ):
        if int(quota) > 0:
            yield int(quota), int(period)


def _settings(name: str, mount: Path, *, controller: str) -> Iterator[str]:
    """Yield a setting of our cgroup and of its ancestors, as far as they can be seen.

    Args:
        name: Of the setting.
        mount: Where the cgroups are.
        controller: Of version 1, which has a tree of groups for each; empty: version 2.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    parts = [line.split(":", 2) for line in lines]
    own = next((path for _, names, path in parts if controller in names.split(",")), "/")
    root = mount / controller
    folder = root / own.lstrip("/")
    for level in (folder, *folder.parents):
        if not level.is_relative_to(root):
            return
        try:
            yield (level / name).read_text().strip()
        except OSError:
            continue
