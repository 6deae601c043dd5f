"""What a pool whose runs are pods or containers is told of the flavor of a job.

A pod is as large as its pool says, whatever the job in it asks for, unless its run says otherwise.
"""

from typing import Any

from prefect.client.schemas.objects import WorkPool

from flows.job_variables import fields_of
from trainjob.flavors import Flavor


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


def _variables(pool_type: str, flavor: Flavor) -> dict[str, Any]:
    if pool_type == "kubernetes":
        size: dict[str, Any] = {"cpus": str(flavor.cores), "memory": f"{flavor.memory_gib}Gi"}
        if flavor.disk_gib is not None:
            size["disk_size"] = f"{flavor.disk_gib}Gi"
        return size | ({"cards": flavor.cards} if flavor.cards else {})
    if pool_type == "docker":
        # Cores and cards are claimed among all runs of the machine, in whichever container.
        return {"mem_limit": f"{flavor.memory_gib}g"}
    return {}  # process: the ranks alone are held to it
