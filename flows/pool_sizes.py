"""What a pool whose runs are pods or containers is told of the flavor of a job.

A pod is as large as its pool says, whatever the job in it asks for, unless its run says otherwise.
"""

from typing import Any

from prefect.client.schemas.objects import FlowRun, WorkPool
from prefect.client.schemas.responses import DeploymentResponse

from flows.job_variables import fields_of
from trainjob.flavors import Flavor
from trainjob.resources import Resources

_OF_SIZE = frozenset({"cpus", "memory", "cards", "mem_limit"})
"""The job variables by which a run is as large as a flavor, of all types of pools."""


def size_variables(pool: WorkPool | None, flavor: Flavor | None) -> dict[str, Any]:
    """Return the job variables by which a run in a pool is as large as a flavor.

    Args:
        pool: The pool; None if there is none.
        flavor: The flavor of the job; None: the size that the pool gives to all.

    Returns:
        Only variables that the template of the pool has: it may be a person's own.
    """
    if flavor is None or pool is None:
        return {}
    known = fields_of(pool)
    wanted = _variables(pool.type, flavor)
    return {name: value for name, value in wanted.items() if name in known}


def kept_variables(
    old: FlowRun, before: Resources | None, deployment: DeploymentResponse, after: Resources
) -> tuple[dict[str, Any], list[str]]:
    """Return the job variables that a run has from the one whose job it is.

    The image, the namespace and whatever else was chosen for that run in the UI, by a program or in
    the terminal belongs to it as its job does. With another flavor it has another size.

    Args:
        old: The run whose job it is.
        before: What its job asked for; None: that is not known any more.
        deployment: What starts the new run.
        after: What its job asks for.

    Returns:
        The variables; and what is not taken over, as warnings.
    """
    chosen = dict(old.job_variables or {})
    before_flavor = before.flavor if before else None
    if before is None or before_flavor != after.flavor:
        chosen = {name: value for name, value in chosen.items() if name not in _OF_SIZE}
    is_same_place = (old.deployment_id, old.work_pool_name) == (
        deployment.id,
        deployment.work_pool_name,
    )
    if is_same_place:
        return chosen, []
    # By names alone: a value may be nobody's business, such as of env.
    names = sorted(name for name in chosen if not (before_flavor and name in _OF_SIZE))
    if not names:
        return {}, []
    return {}, [
        f"the job variables {', '.join(names)} of the run {old.name!r} are left behind, since "
        f"the deployment {deployment.name!r} starts its runs otherwise; give those that it needs "
        "by --job-variable"
    ]


def _variables(pool_type: str, flavor: Flavor) -> dict[str, Any]:
    if pool_type == "kubernetes":
        size: dict[str, Any] = {"cpus": str(flavor.cores), "memory": f"{flavor.memory_gib}Gi"}
        return size | ({"cards": flavor.cards} if flavor.cards else {})
    if pool_type == "docker":
        # Cores and cards are claimed among all runs of the machine, in whichever container.
        return {"mem_limit": f"{flavor.memory_gib}g"}
    return {}  # process: the ranks alone are held to it
