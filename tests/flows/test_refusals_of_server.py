"""What a server refuses: told with its own words, and with a login only where that may help."""

import pytest
from prefect.client.schemas.actions import WorkPoolCreate

from flows.server_client import configured_server
from trainjob.errors import TrainjobError


def test_what_is_not_allowed_to_anyone_is_told_in_the_words_of_the_server(
    prefect_server: str,
) -> None:
    with pytest.raises(TrainjobError) as told, configured_server() as client:
        client.create_work_pool(WorkPoolCreate(name="prefect-x", type="process"))

    assert "answered POST /api/work_pools/ with 403 Forbidden: " in str(told.value)
    assert "Work pools starting with 'Prefect' are reserved" in str(told.value)
    assert "if it refuses who asks, set PREFECT_API_AUTH_STRING to the one of the server" in str(
        told.value
    )
