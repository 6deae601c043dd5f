"""Gives each rank the cores near its card, on a machine with several NUMA nodes.

From the cores of another node, what a rank loads crosses the link between the processors twice: on
its way to memory, and to the card. Where a flavor, a container or a person has chosen cores
already, and where the node of one card is not known, the ranks are left alone.
"""

from collections.abc import Mapping
from pathlib import Path

from trainjob.launch.core_leases import core_list
from trainjob.launch.devices import bus_addresses
from trainjob.launch.launch import Launch
from trainjob.launch.machine import num_cores

SWITCH = "TRAINJOB_NUMA"
"""The variable, of the job or else of the worker, that leaves the ranks alone if it is ``off``."""

_NODES = Path("/sys/devices/system/node")
_PCI = Path("/sys/bus/pci/devices")

Cores = tuple[int, ...]


def cores_of_ranks(launch: Launch, environ: Mapping[str, str]) -> tuple[Cores, ...] | None:
    """Return for each rank the cores near it, in ascending order; None: any that the run has.

    Ranks without cards are spread over the nodes, if that gives all of them as many cores.

    Args:
        launch: What is started.
        environ: The environment of this process.
    """
    if launch.env.get(SWITCH, environ.get(SWITCH)) == "off" or launch.core_lease is not None:
        return None
    nodes = _nodes()
    num_all = sum(map(len, nodes.values()))
    if len(nodes) < 2 or min(num_cores(), launch.cores or num_all) < num_all:
        return None
    if launch.device == "cpu":
        return _spread(list(nodes.values()), launch.world_size)
    return _near_cards(launch, nodes)


def threads_of_rank(near: tuple[Cores, ...]) -> int:
    """Return how many threads each rank may have, so that no core has two."""
    return max(1, min(len(cores) // near.count(cores) for cores in near))


def told_cores(near: tuple[Cores, ...]) -> str:
    """Return in one line for a person which cores the ranks have."""
    ranks = {
        cores: core_list([rank for rank, own in enumerate(near) if own == cores]) for cores in near
    }
    parts = (f"rank {ranks[cores]} on {core_list(cores)}" for cores in ranks)
    return f"cores by NUMA node ({SWITCH}=off: any): {', '.join(parts)}"


def _nodes() -> dict[int, Cores]:
    """Return the cores of each node that has some, by its number."""
    lists = {int(file.parent.name[4:]): file for file in _NODES.glob("node[0-9]*/cpulist")}
    nodes = {node: _numbers(lists[node].read_text(encoding="ascii")) for node in sorted(lists)}
    return {node: cores for node, cores in nodes.items() if cores}


def _numbers(text: str) -> Cores:
    """Read ``0-3,8``."""
    ends = [part.split("-") for part in text.strip().split(",") if part]
    return tuple(core for end in ends for core in range(int(end[0]), int(end[-1]) + 1))


def _spread(nodes: list[Cores], world_size: int) -> tuple[Cores, ...] | None:
    is_even = len(set(map(len, nodes))) == 1
    if world_size < 2 or not is_even or (len(nodes) % world_size and world_size % len(nodes)):
        return None
    num_each = max(1, len(nodes) // world_size)
    firsts = [rank * len(nodes) // world_size for rank in range(world_size)]
    return tuple(tuple(sorted(sum(nodes[n : n + num_each], ()))) for n in firsts)


def _near_cards(launch: Launch, nodes: Mapping[int, Cores]) -> tuple[Cores, ...] | None:
    cards = launch.lease.cards if launch.lease else ()
    if len(cards) != launch.world_size:  # which rank takes which is known to the script alone
        return None
    buses = bus_addresses(launch.device)
    near = [nodes.get(_node_at(buses.get(card.name, ""))) for card in cards]
    found = tuple(cores for cores in near if cores)
    return found if len(found) == len(cards) else None


def _node_at(bus: str) -> int:
    """Return the node of a device; -1, as the kernel says it, if that is not known."""
    try:
        return int((_PCI / bus / "numa_node").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return -1
