"""Deployments that commands made before an upgrade: a registration tells what makes them anew."""

import copy
from collections.abc import Iterator

import pytest
from prefect.client.orchestration import SyncPrefectClient

from deployments.stale_forms import stale_forms
from flows.schedules import MADE_FROM_ALGORITHM, MADE_HERE, same_start
from tests.submitting import cpu_deployment


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """Give a client of a server that has the pool and the deployment cpu."""
    with cpu_deployment() as found:
        yield found


def make(client: SyncPrefectClient, name: str, tag: str, *, of_old: bool) -> None:
    """Make a deployment as a command does; one of old lacks a field of today's form."""
    base = client.read_deployment_by_name("training-job/cpu")
    start = same_start(base)
    form = copy.deepcopy(base.parameter_openapi_schema or {})
    if of_old:
        del form["definitions"]["TrainingJob"]["properties"]["secrets"]
    else:  # as `flows.algorithm_deployment` narrows it
        form["definitions"]["TrainingJob"]["properties"]["algorithm"] = {"type": "string"}
    start["parameter_openapi_schema"] = form
    client.create_deployment(flow_id=base.flow_id, name=name, tags=[tag], **start)


def test_what_was_made_before_an_upgrade_is_told_with_what_makes_it_anew(
    client: SyncPrefectClient,
) -> None:
    make(client, "nights", MADE_HERE, of_old=True)
    make(client, "digits", MADE_FROM_ALGORITHM, of_old=True)
    make(client, "new", MADE_FROM_ALGORITHM, of_old=False)
    make(client, "somebody's", "other", of_old=True)
    make(client, "check", MADE_HERE, of_old=True)  # prefect.yaml has one of the name, a check-job

    said = [str(change) for change in stale_forms(client)]

    for name in ("nights", "digits", "new", "somebody's", "check"):
        client.delete_deployment(client.read_deployment_by_name(f"training-job/{name}").id)
    anew = "its form is of another version; make it anew, by the `python -m flows"
    assert said == [
        f"left     deployment training-job/check: {anew} schedule` that made it",
        f"left     deployment training-job/digits: {anew} algorithm deploy` that made it",
        f"left     deployment training-job/nights: {anew} schedule` that made it",
    ]
