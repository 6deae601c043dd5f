"""The pools on the server that the tests of a process share."""

from prefect.client.orchestration import SyncPrefectClient

from deployments.work_pools import POOLS


def delete_pools(client: SyncPrefectClient) -> None:
    """Delete our pools: after a test that made some, and before one that wants none."""
    for pool in client.read_work_pools():
        if pool.name in POOLS:
            client.delete_work_pool(pool.name)
