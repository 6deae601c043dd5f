"""Resources that cannot stand together with the flavor, or with what the algorithm can use."""

from typing import Any

import pytest

from trainjob.errors import JobError, Problem
from trainjob.job import TrainingJob
from trainjob.resource_rules import resource_problems

SCRIPT: dict[str, Any] = {"kind": "script", "code": {"url": "c"}, "boot_file": "t.py"}


def given(constraints: dict[str, Any] | None = None, **resources: Any) -> dict[str, Any]:
    algorithm = SCRIPT | ({"constraints": constraints} if constraints else {})
    return {"name": "x", "launcher": "torchrun", "algorithm": algorithm, "resources": resources}


def only_problem(data: dict[str, Any]) -> Problem:
    with pytest.raises(JobError) as raised:
        TrainingJob.parse(data)
    [problem] = raised.value.problems
    return problem


def test_a_device_that_is_not_that_of_the_flavors_cards_is_refused() -> None:
    assert str(only_problem(given(device="cpu", flavor="8C40G V100*1"))) == (
        "resources.device: asked for cpu, found the flavor 8c40g V100*1, which has 1 card of cuda; "
        "remove device, or choose another flavor"
    )


def test_more_processes_than_cards_are_refused() -> None:
    assert str(only_problem(given(processes_per_node=3, flavor="8C40G V100*2"))) == (
        "resources.processes_per_node: asked for 3 processes, found the flavor 8c40g V100*2 with "
        "2 cards; start one process a card, or fewer"
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_flavor_without_cards_goes_with_any_device(device: str) -> None:
    job = TrainingJob.parse(given(processes_per_node=2, flavor="2c4g", device=device))

    assert job.resources.device == device


@pytest.mark.parametrize(
    ("constraints", "resources", "rule", "message"),
    [
        (
            {"devices": ["cuda", "npu"]},
            {},
            "constraint-device",
            "resources.device: asked for device cpu, found the algorithm of the job, which is for "
            "cuda, npu alone; use another device or algorithm",
        ),
        (
            {"devices": ["cpu"]},
            {"flavor": "8C40G V100*1"},
            "constraint-device",
            "resources.device: asked for device cuda, found the algorithm of the job, which is for "
            "cpu alone; use another device or algorithm",
        ),
        (
            {"multi_card": False},
            {"processes_per_node": 2},
            "constraint-processes-per-node",
            "resources.processes_per_node: asked for 2 processes, found the algorithm of the job, "
            "which is for one card and one rank alone (multi_card: false); set processes_per_node "
            "to 1",
        ),
        (
            {"multi_card": False},
            {"flavor": "8C40G V100*2"},
            "constraint-flavor",
            "resources.flavor: asked for 8c40g V100*2, found the algorithm of the job, which is "
            "for one card and one rank alone (multi_card: false); choose a flavor with one card",
        ),
    ],
)
def test_what_the_algorithm_cannot_use_is_refused(
    constraints: dict[str, Any], resources: dict[str, Any], rule: str, message: str
) -> None:
    problem = only_problem(given(constraints, **resources))

    assert str(problem) == message
    assert (problem.level, problem.id) == ("error", rule)


@pytest.mark.parametrize("flavor", ["8C40G V1OO", {"cores": 8, "card": "V100", "cards": 1}])
def test_a_wrong_flavor_says_nothing_of_the_device(flavor: Any) -> None:
    problem = only_problem(given({"devices": ["cuda"]}, flavor=flavor))

    assert problem.field.startswith("resources.flavor")


def test_a_device_that_was_asked_for_is_judged_beside_a_wrong_flavor() -> None:
    with pytest.raises(JobError) as raised:
        TrainingJob.parse(given({"devices": ["cuda"]}, flavor="V1OO", device="cpu"))

    assert [p.field for p in raised.value.problems] == ["resources.flavor", "resources.device"]


def test_several_machines_are_refused_where_the_algorithm_knows_one() -> None:
    job = TrainingJob.parse(given({"distributed": False}))
    # Jobs of several machines are not read so far.
    several = job.model_copy(update={"resources": job.resources.model_copy(update={"nodes": 2})})

    assert [str(problem) for problem in resource_problems(several)] == [
        "resources.nodes: asked for 2 machines, found the algorithm of the job, which is for one "
        "machine alone (distributed: false); set nodes to 1"
    ]


def test_an_algorithm_without_constraints_can_use_everything() -> None:
    job = TrainingJob.parse(given(processes_per_node=8, flavor="8C40G V100*8"))

    assert resource_problems(job) == []


@pytest.mark.parametrize(
    ("constraints", "expected"),
    [
        ({"devices": []}, "constraints.devices: asked for at least one of cpu, cuda and npu"),
        ({"devices": ["gpu"]}, "constraints.devices[0]: asked for 'cpu', 'cuda' or 'npu'"),
        ({"multicard": True}, "constraints.multicard: asked for a known key"),
    ],
)
def test_constraints_that_say_nothing_are_told(constraints: dict[str, Any], expected: str) -> None:
    assert str(only_problem(given(constraints))).startswith(f"algorithm.{expected}")


def test_a_kind_of_device_by_the_name_of_a_product_is_one_mistake() -> None:
    problem = only_problem(given({"devices": ["cpu", "gpu"]}, device="cuda"))

    assert str(problem) == (
        "algorithm.constraints.devices[1]: asked for 'cpu', 'cuda' or 'npu', found 'gpu'; "
        "did you mean 'cuda'?"
    )
