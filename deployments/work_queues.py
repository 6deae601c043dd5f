"""The queues of a pool on the server, one for each priority of `flows.priorities`."""

from collections.abc import Collection

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.exceptions import ObjectNotFound

from deployments.changes import Change
from deployments.flow_deployments import pools_in_file
from flows.priorities import QUEUES
from flows.submitting import deployments


def ensure_queues(client: SyncPrefectClient, pool: str) -> Change:
    """Create the queues that a pool lacks; priorities, limits and pauses of others stay.

    Args:
        client: The server to tell.
        pool: Name of a pool that exists.
    """
    what = f"queues {', '.join(QUEUES.values())} of the pool {pool}"
    missing = [queue for queue in QUEUES.values() if not _exists(client, pool, queue)]
    for place, queue in enumerate(QUEUES.values(), 1):
        if queue in missing:
            # Prefect moves those that have this place, and all after them, one place back.
            client.create_work_queue(queue, priority=place, work_pool_name=pool)
    if not missing:
        return Change("left", what)
    is_new = len(missing) == len(QUEUES) - 1  # Prefect makes the default itself
    made = "" if is_new else f"made {', '.join(missing)} again"
    return Change("created" if is_new else "changed", what, made)


def other_pools(client: SyncPrefectClient, *, known: Collection[str]) -> list[str]:
    """Return the pools on the server that runs are for, but not `known` ones, by name.

    They are those of the deployments of the flow, on the server or in prefect.yaml.
    """
    pools = {deployment.work_pool_name for deployment in deployments(client)} | pools_in_file()
    names = [pool for pool in pools if pool is not None and pool not in known]
    if not names:
        return []
    found = client.read_work_pools(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=names))
    )
    return sorted(pool.name for pool in found)


def _exists(client: SyncPrefectClient, pool: str, queue: str) -> bool:
    try:
        client.read_work_queue_by_name(queue, work_pool_name=pool)
    except ObjectNotFound:
        return False
    return True
