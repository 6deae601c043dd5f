"""The rules of a job's resources: against its flavor, and against what its algorithm can use.

Called by `trainjob.job_rules`; the machine is looked at elsewhere (`trainjob.launch.preflight`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainjob.errors import Problem
from trainjob.values import counted

if TYPE_CHECKING:  # the model calls these rules, so it cannot be imported here
    from trainjob.job import TrainingJob
    from trainjob.resources import Resources


def resource_problems(job: "TrainingJob") -> list[Problem]:
    """Return what of the resources cannot stand together, or is not for the algorithm."""
    return [*_flavor_problems(job.resources), *_constraint_problems(job)]


def without_guessed_device(problems: Sequence[Problem], data: Any) -> list[Problem]:
    """Leave out what is wrong with the device, if a wrong flavor would have said which it is.

    Args:
        problems: All problems of a job.
        data: Its keys and values, as they were given.
    """
    resources = data.get("resources") if isinstance(data, dict) else None
    is_asked = isinstance(resources, dict) and "device" in resources
    is_flavor_wrong = any(
        problem.field.startswith("resources.flavor") and not problem.id.startswith("constraint-")
        for problem in problems
    )
    is_guessed = is_flavor_wrong and not is_asked
    return [p for p in problems if not (is_guessed and p.id == "constraint-device")]


def _flavor_problems(resources: "Resources") -> list[Problem]:
    flavor, processes = resources.flavor, resources.processes_per_node
    if flavor is None or flavor.device is None:
        return []
    cards = counted(flavor.cards, "card")
    if resources.device != flavor.device:
        found = f"the flavor {flavor}, which has {cards} of {flavor.device}"
        do = "remove device, or choose another flavor"
        return [Problem("resources.device", resources.device, found, do)]
    if processes > flavor.cards:
        found, do = f"the flavor {flavor} with {cards}", "start one process a card, or fewer"
        asked = f"{processes} processes"
        return [Problem("resources.processes_per_node", asked, found, do)]
    return []


def _constraint_problems(job: "TrainingJob") -> list[Problem]:
    """Compare with what the algorithm declares.

    ModelArts, "Creating an Algorithm": resource type, multicard and distributed training.
    """
    resources, constraints = job.resources, job.algorithm.constraints
    who = f"the algorithm {job.algorithm.registered or 'of the job'}, which is"
    problems = []
    if resources.device not in constraints.devices:
        found = f"{who} for {', '.join(constraints.devices)} alone"
        do = "use another device or algorithm"
        problems.append(_problem("device", f"device {resources.device}", found, do))
    if not constraints.multi_card:
        found = f"{who} for one card and one rank alone (multi_card: false)"
        problems += _several(resources, found)
    if resources.nodes > 1 and not constraints.distributed:
        found = f"{who} for one machine alone (distributed: false)"
        problems.append(_problem("nodes", f"{resources.nodes} machines", found, "set nodes to 1"))
    return problems


def _several(resources: "Resources", found: str) -> list[Problem]:
    processes, flavor = resources.processes_per_node, resources.flavor
    if processes > 1:
        do = "set processes_per_node to 1"
        return [_problem("processes_per_node", f"{processes} processes", found, do)]
    if flavor is not None and flavor.cards > 1:
        return [_problem("flavor", f"{flavor}", found, "choose a flavor with one card")]
    return []


def _problem(key: str, asked: str, found: str, do: str) -> Problem:
    return Problem(f"resources.{key}", asked, found, do, id=f"constraint-{key.replace('_', '-')}")
