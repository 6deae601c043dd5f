"""Chooses the cores that the ranks of a run compute on, so that two small jobs do not share them.

A run claims its cores as it claims cards (`trainjob.launch.card_claims`), but waits for none: where
too few are free it shares those with the fewest runs on them, and the kernel divides their time. A
core is what the kernel calls a CPU, and what a flavor counts; those that are threads of one unit of
the processor (hyperthreads) compute half as fast each, so that runs share a unit last.
"""

import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from trainjob.errors import LaunchError
from trainjob.events import Noted, emit
from trainjob.launch.card_claims import Claim, Claims
from trainjob.launch.launch import CoreLease
from trainjob.launch.machine import num_cores

_PREFIX = "core:"
_CPUS = Path("/sys/devices/system/cpu")
_PATIENCE_S = 5.0


@contextmanager
def leased_cores(count: int | None, *, run_id: str) -> Iterator[CoreLease | None]:
    """Have cores for the ranks of a run until the block ends.

    Args:
        count: How many; None: all that there are, shared with everybody.
        run_id: Who wants them.

    Yields:
        The cores and what holds them; None if none can or need be chosen: none were asked for, a
        container has no more of their time than that, the kernel takes no such wish, or nobody can
        claim any, which is no reason not to train.
    """
    if count is None or not can_choose_cores(count):
        yield None
        return
    with ExitStack() as stack:
        lease = None
        try:
            lease = stack.enter_context(_claimed_cores(count, run_id))
        except LaunchError as error:
            emit(Noted(f"the ranks are not held to {count} of the cores: {error}"))
        yield lease


@contextmanager
def _claimed_cores(count: int, run_id: str) -> Iterator[CoreLease]:
    """Have cores until the block ends.

    Raises:
        LaunchError: If the folder of the claims cannot be used.
    """
    claims = Claims(_PATIENCE_S)
    units = units_of(os.sched_getaffinity(0))
    names = {core: f"{_PREFIX}{core}" for core in units}
    with claims.held(Claim(run_id, os.getpid(), count, tuple(names.values()))) as held:
        with claims.alone():
            living = claims.living().values()
            users = Counter(name for claim in living for name in claim.has)
            num_users = {core: users[name] for core, name in names.items()}
            chosen = _chosen(num_users, units, count, run_id)
            held.take(tuple(names[core] for core in chosen))
        taken = set(held.claim.has)
        shared_with = tuple(claim.run for claim in living if not taken.isdisjoint(claim.has))
        yield CoreLease(tuple(sorted(chosen)), held.descriptor, shared_with)


def can_choose_cores(count: int) -> bool:
    """Tell whether the ranks of a run can be held to some cores, and not by a container already."""
    # From Linux 6.2 on, a thread that has chosen gets no cores that its container is given later;
    # so it is one that ends.
    with ThreadPoolExecutor(1) as thread:
        may_choose = thread.submit(_may_choose).result()
    return may_choose and not num_cores() <= count < len(os.sched_getaffinity(0))


def _may_choose() -> bool:
    try:
        os.sched_setaffinity(0, os.sched_getaffinity(0))  # changes nothing
    except OSError:  # forbidden, as by a seccomp filter
        return False
    return True


def units_of(cores: set[int]) -> dict[int, int]:
    """Return for each core the unit whose thread it is; those of one processor and unit are near.

    A unit is called after its first core.
    """
    found = {core: _number(core, "thread_siblings_list", core) for core in cores}
    order = sorted(
        cores, key=lambda core: (_number(core, "physical_package_id", 0), found[core], core)
    )
    return {core: found[core] for core in order}


def core_list(cores: Sequence[int]) -> str:
    """Write ascending cores as people and taskset(1) do: ``0-3,8``."""
    parts: list[list[int]] = []
    for core in cores:
        if parts and core == parts[-1][-1] + 1:
            parts[-1].append(core)
        else:
            parts.append([core])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _chosen(
    num_users: Mapping[int, int], units: Mapping[int, int], count: int, run_id: str
) -> list[int]:
    """Return the cores of a run: those least in use, of units that are least in use.

    Args:
        num_users: How many runs each core has, in the order of `units_of`.
        units: The unit of each.
        count: How many are wanted.
        run_id: Decides where to begin among cores that are as good: runs in containers may not see
            the claims of one another, and must not all take the first ones.
    """
    users_of_unit: Counter[int] = Counter()
    for core, users in num_users.items():
        users_of_unit[units[core]] += users

    def use(core: int) -> tuple[int, int]:
        return num_users[core], users_of_unit[units[core]]

    ranked = sorted(num_users, key=use)  # those that are as good stay near each other
    best = [core for core in ranked if use(core) == use(ranked[0])]
    num_threads = max(Counter(units.values()).values())
    step = -(-count // num_threads) * num_threads  # begins with a unit, not within one
    num_places = len(best) // step
    begin = zlib.crc32(run_id.encode()) % num_places * step if num_places else 0
    return (best if num_places else ranked)[begin : begin + count]


def _number(core: int, what: str, unknown: int) -> int:
    """Return the first number that the kernel says of a core."""
    try:
        said = (_CPUS / f"cpu{core}" / "topology" / what).read_text()
        return int(re.split(r"[,-]", said, maxsplit=1)[0])
    except (OSError, ValueError):  # a kernel that does not tell
        return unknown
