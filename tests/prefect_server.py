"""One Prefect server for the whole session, for the tests of flows, tasks and blocks."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from unittest.mock import patch

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_HOME,
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_EVENTS_CAUSAL_ORDERING,
    PREFECT_SERVER_EVENTS_MESSAGING_BROKER,
    temporary_settings,
)
from prefect.testing.utilities import prefect_test_harness

from tests.prefect_homes import fill_home
from tests.waiting import PATIENCE_S


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a server with an empty database and give its API url."""
    home = tmp_path_factory.mktemp("prefect-home")
    # The folder that the harness makes for its database, and deletes at the end of this process.
    database = fill_home(Path(mkdtemp()), "prefect-test.db")
    place = patch("prefect.testing.utilities.mkdtemp", return_value=str(database))
    isolated = {
        PREFECT_HOME: home,
        PREFECT_LOCAL_STORAGE_PATH: home / "storage",
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
        PREFECT_SERVER_EVENTS_CAUSAL_ORDERING: "deployments.patient_events",
        PREFECT_SERVER_EVENTS_MESSAGING_BROKER: "deployments.patient_events",
        PREFECT_CLIENT_MAX_RETRIES: 7,
    }
    harness = prefect_test_harness(server_startup_timeout=int(PATIENCE_S))
    with temporary_settings(isolated), place, harness:
        yield str(PREFECT_API_URL.value())


@pytest.fixture(scope="module")
def prefect_server(shared_server: str) -> str:
    """Give the API url of a server on which nobody has set up anything yet.

    The runs of the files before are still there.
    """
    with get_client(sync_client=True) as client:
        _delete_what_is_set_up(client)
    return shared_server


def _delete_what_is_set_up(client: SyncPrefectClient) -> None:
    for automation in client.read_automations():
        client.delete_automation(automation.id)
    for deployment in client.read_deployments():
        client.delete_deployment(deployment.id)
    for pool in client.read_work_pools():
        client.delete_work_pool(pool.name)
    for document in client.read_block_documents():
        client.delete_block_document(document.id)
    for variable in client.read_variables():
        client.delete_variable_by_name(variable.name)
    for limit in client.read_global_concurrency_limits():
        client.delete_global_concurrency_limit_by_name(limit.name)
