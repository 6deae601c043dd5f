"""What holds the ranks to the cores and the memory of their flavor, in one line for a person."""

import os

from trainjob.launch.core_leases import can_choose_cores, core_list
from trainjob.launch.launch import Launch
from trainjob.launch.memory_group import group_place
from trainjob.values import counted, format_size


def applied_limits(launch: Launch) -> str | None:
    """Return which cores and how much memory the ranks have, and by which means; None: all."""
    if launch.cores is None or launch.memory_bytes is None:
        return None
    memory = _memory(launch.memory_bytes, has_group=launch.memory_group is not None)
    return f"limits of the ranks: {_leased_cores(launch, launch.cores)}; {memory}"


def planned_limits(launch: Launch) -> str | None:
    """Return what a run would have on this machine, before it has it; None: all of the machine."""
    if launch.cores is None or launch.memory_bytes is None:
        return None
    cores = _cores(launch.cores, are_chosen=can_choose_cores(launch.cores))
    return f"{cores}; {_memory(launch.memory_bytes, has_group=bool(group_place(os.environ)))}"


def _leased_cores(launch: Launch, count: int) -> str:
    lease = launch.core_lease
    if lease is None:
        return _cores(count, are_chosen=False)
    numbers = f"core{'s'[: len(lease.cores) > 1]} {core_list(lease.cores)} by affinity"
    if not lease.shared_with:
        return numbers
    others = ", ".join(dict.fromkeys(lease.shared_with))
    return f"{numbers}, some shared with the run {others} since too few were free"


def _cores(count: int, *, are_chosen: bool) -> str:
    how = " by affinity" if are_chosen else ", left to the container or the kernel"
    return f"{counted(count, 'core')}{how}"


def _memory(limit_bytes: int, *, has_group: bool) -> str:
    how = "by a cgroup" if has_group else "watched, since no cgroup may be made here"
    return f"{format_size(limit_bytes)} of memory {how}"
