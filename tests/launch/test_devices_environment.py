"""What ranks on a kind of device are told of cards and of the ways between them."""

import pytest

from trainjob.launch.environment import rank_environment
from trainjob.launch.launch import Card, Lease

SECOND = Lease(cards=(Card("cuda:1", "1"),), claim=-1)
INTERFACES = [("cuda", "NCCL_SOCKET_IFNAME"), ("npu", "HCCL_SOCKET_IFNAME")]


@pytest.mark.parametrize(("device", "name"), INTERFACES)
def test_ranks_of_one_node_find_one_another_on_loopback(make_launch, device, name):
    assert rank_environment(make_launch(device=device), {})[name] == "lo"
    assert name not in rank_environment(make_launch(device="cpu"), {})


@pytest.mark.parametrize(("device", "name"), INTERFACES)
def test_the_interface_of_the_worker_or_the_job_goes_before_ours(make_launch, device, name):
    worker = rank_environment(make_launch(device=device), {name: "eth0"})
    job = rank_environment(make_launch(device=device, env={name: "eth1"}), {name: "eth0"})

    assert (worker[name], job[name]) == ("eth0", "eth1")


def test_ranks_count_the_cards_as_we_do(make_launch):
    assert rank_environment(make_launch(device="cuda"), {})["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_ranks_see_no_more_than_their_cards_whatever_the_job_says(make_launch):
    launch = make_launch(device="cuda", lease=SECOND, env={"CUDA_VISIBLE_DEVICES": "0,1"})

    environment = rank_environment(launch, {"CUDA_VISIBLE_DEVICES": "0,1,2"})

    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
