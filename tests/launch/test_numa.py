"""Ranks near their cards: on machines of two and more nodes, by folders that stand for /sys."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.launch.conftest import MakeLaunch
from trainjob.launch import devices, numa
from trainjob.launch.environment import rank_environment
from trainjob.launch.launch import Card, CoreLease, Launch, Lease
from trainjob.launch.numa import cores_of_ranks, told_cores

FIRST, SECOND = (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)
BUSES = ("0000:3b:00.0", "0000:5e:00.0", "0000:af:00.0")


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def make_nodes(folder: Path, *lists: str) -> None:
    for node, cores in enumerate(lists):
        write(folder / f"node{node}" / "cpulist", f"{cores}\n")


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 16 cores in two nodes, with memory in a third that has none."""
    make_nodes(tmp_path / "node", "0-3,8-11", "4-7,12-15", "")
    monkeypatch.setattr(numa, "_NODES", tmp_path / "node")
    monkeypatch.setattr(numa, "num_cores", lambda: 16)
    return tmp_path / "node"


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Card, ...]:
    """Two cards at the second node and one at the first, as the driver of NVIDIA tells of them."""
    monkeypatch.setattr(numa, "_PCI", tmp_path / "pci")
    monkeypatch.setattr(devices, "_NVIDIA_DIR", tmp_path / "gpus")
    for minor, (bus, node) in enumerate(zip(BUSES, (1, 1, 0), strict=True)):
        write(tmp_path / "pci" / bus / "numa_node", f"{node}\n")
        facts = f"GPU UUID: \t GPU-{minor}\nDevice Minor: \t {minor}\n"
        write(tmp_path / "gpus" / bus / "information", facts)
    return tuple(Card(f"cuda:{minor}", str(minor)) for minor in range(3))


def on_cards(make_launch: MakeLaunch, *cards: Card) -> Launch:
    return make_launch(device="cuda", world_size=len(cards), lease=Lease(cards, claim=-1))


@pytest.mark.usefixtures("nodes")
def test_ranks_have_the_cores_of_the_node_of_their_card(make_launch, cards):
    launch = on_cards(make_launch, *cards)

    near = cores_of_ranks(launch, {})

    assert near == (SECOND, SECOND, FIRST)
    assert told_cores(near) == (
        "cores by NUMA node (TRAINJOB_NUMA=off: any): rank 0-1 on 4-7,12-15, rank 2 on 0-3,8-11"
    )
    threads = rank_environment(replace(launch, rank_cores=near), {})["OMP_NUM_THREADS"]
    assert threads == "4"  # of the 8 cores that two of them share


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("unknown", ["of no node", "not told", "a part"])
def test_ranks_are_left_alone_if_the_node_of_a_card_is_not_known(
    make_launch, cards, tmp_path, unknown
):
    if unknown == "of no node":  # what a virtual machine says
        (tmp_path / "pci" / BUSES[1] / "numa_node").write_text("-1\n")
    elif unknown == "not told":
        (tmp_path / "gpus" / BUSES[1] / "information").unlink()
    else:
        cards = (cards[0], Card("MIG-b3a1", "MIG-b3a1"))

    assert cores_of_ranks(on_cards(make_launch, *cards), {}) is None


@pytest.mark.usefixtures("nodes")
def test_the_cards_of_one_rank_may_be_at_any_node(make_launch, cards):
    launch = make_launch(device="cuda", world_size=1, lease=Lease(cards, claim=-1))

    assert cores_of_ranks(launch, {}) is None


@pytest.mark.usefixtures("nodes")
def test_ranks_of_npus_are_near_them_as_npu_smi_tells(make_launch, tmp_path, monkeypatch):
    """Its numbers of cards and chips are not the places by which the ranks choose."""
    write(
        tmp_path / "bin" / "npu-smi",
        """#!/bin/sh
case "$*" in
"info -m") printf '%s\\n' 'NPU ID  Chip ID  Chip Logic ID  Chip Name' \\
    '4  0  1  Ascend 910B' '4  1  -  Mcu' '2  0  0  Ascend 910B' ;;
"info -t board -i 2 -c 0") echo '  PCIe Bus Info         : 0000:C1:00.0' ;;
"info -t board -i 4 -c 0") echo '  PCIeBusInfo           : 0000:01:00.0' ;;
*) exit 1 ;;
esac
""",
    )
    (tmp_path / "bin" / "npu-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for name in ("davinci0", "davinci1"):
        write(tmp_path / "dev" / name, "")
    monkeypatch.setattr(devices, "DEV_DIR", tmp_path / "dev")
    write(tmp_path / "pci" / "0000:c1:00.0" / "numa_node", "1")
    write(tmp_path / "pci" / "0000:01:00.0" / "numa_node", "0")
    monkeypatch.setattr(numa, "_PCI", tmp_path / "pci")
    lease = Lease((Card("npu:0", "0"), Card("npu:1", "1")), claim=-1)

    near = cores_of_ranks(make_launch(device="npu", world_size=2, lease=lease), {})

    assert near == (SECOND, FIRST)


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize(
    ("world_size", "near"),
    [
        (1, None),  # would lose the other half
        (2, (FIRST, SECOND)),
        (3, None),  # two would share what one has for itself
        (4, (FIRST, FIRST, SECOND, SECOND)),
    ],
)
def test_ranks_without_cards_are_spread_over_the_nodes(make_launch, world_size, near):
    assert cores_of_ranks(make_launch(world_size=world_size), {}) == near


def test_ranks_have_several_nodes_if_there_are_more_nodes_than_ranks(make_launch, nodes):
    make_nodes(nodes, "0-3", "4-7", "8-11", "12-15")

    near = cores_of_ranks(make_launch(world_size=2), {})

    assert near == (tuple(range(8)), tuple(range(8, 16)))


def test_nodes_of_unlike_size_and_machines_of_one_node_change_nothing(make_launch, nodes):
    make_nodes(nodes, "0-3,8-11", "4-7")
    assert cores_of_ranks(make_launch(world_size=2), {}) is None

    make_nodes(nodes, "0-15", "")
    assert cores_of_ranks(make_launch(world_size=2), {}) is None


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("by", ["flavor", "whole flavor", "container", "job", "worker"])
def test_whoever_has_chosen_cores_goes_before(make_launch, monkeypatch, by):
    launch, environ = make_launch(world_size=2), {}
    if by == "flavor":
        launch = replace(launch, cores=8, core_lease=CoreLease(tuple(range(8)), -1))
    elif by == "whole flavor":  # it narrows nothing
        launch = replace(launch, cores=16)
    elif by == "container":
        monkeypatch.setattr(numa, "num_cores", lambda: 8)
    elif by == "job":
        launch = replace(launch, env={"TRAINJOB_NUMA": "off"})
    else:
        environ = {"TRAINJOB_NUMA": "off"}

    assert (cores_of_ranks(launch, environ) is None) == (by != "whole flavor")


def test_each_rank_computes_on_its_cores(make_launch, watch, tmp_path, monkeypatch):
    own = sorted(os.sched_getaffinity(0))
    if len(own) % 2:
        pytest.skip("needs an even number of cores")
    halves = own[: len(own) // 2], own[len(own) // 2 :]
    make_nodes(tmp_path / "node", *(",".join(map(str, half)) for half in halves))
    monkeypatch.setattr(numa, "_NODES", tmp_path / "node")
    monkeypatch.setattr(numa, "num_cores", lambda: len(own))
    script = "import os\nprint([sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS']])"

    ran = watch(make_launch(script.replace("'", '"'), world_size=2))

    assert [ran.lines(rank) for rank in range(2)] == [
        [f"{[half, str(len(half))]}"] for half in halves
    ]
