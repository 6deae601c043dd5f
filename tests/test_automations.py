"""The automations on a server: there once, as they should be, off if a person wants that."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from prefect.automations import EventTrigger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from deployments.automations import automations, default_dead_after_s, register_automations
from deployments.changes import Change
from flows.run_end import GOOD_STATES

NAMES = sorted(automation.name for automation in automations(90))
DEAD_RUNS = "trainjob: notice dead runs"


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """Give a client of a server without automations."""
    with get_client(sync_client=True) as client:
        yield client
        for automation in client.read_automations():
            client.delete_automation(automation.id)


def on_server(client: SyncPrefectClient) -> dict[str, dict[str, Any]]:
    """Return everything that the server knows of its automations, by their names."""
    found = client.request("POST", "/automations/filter", json={}).json()
    assert sorted(automation["name"] for automation in found) == NAMES
    return {automation["name"]: automation for automation in found}


def test_registering_again_changes_nothing(client: SyncPrefectClient) -> None:
    """An update would make the server forget which runs have asked for a restart."""
    register_automations(client, dead_after_s=90)
    before = on_server(client)

    register_automations(client, dead_after_s=90)

    assert on_server(client) == before


def test_a_changed_automation_is_updated_in_place_and_the_others_are_left(
    client: SyncPrefectClient,
) -> None:
    register_automations(client, dead_after_s=90)
    before = on_server(client)

    register_automations(client, dead_after_s=30)

    after = on_server(client)
    assert after[DEAD_RUNS]["id"] == before[DEAD_RUNS]["id"]
    assert after[DEAD_RUNS]["trigger"]["within"] == 30
    changed = {name for name in NAMES if after[name] != before[name]}
    assert changed == {DEAD_RUNS}


def test_an_automation_that_a_person_disabled_stays_disabled(client: SyncPrefectClient) -> None:
    register_automations(client, dead_after_s=90)
    client.pause_automation(on_server(client)[DEAD_RUNS]["id"])

    register_automations(client, dead_after_s=30)

    after = on_server(client)
    assert after[DEAD_RUNS]["trigger"]["within"] == 30
    assert [name for name in NAMES if not after[name]["enabled"]] == [DEAD_RUNS]


def test_an_automation_of_an_older_release_is_removed_and_those_of_people_are_left(
    client: SyncPrefectClient,
) -> None:
    """This one put Cancelled over the last word of runs that had ended (decision 0013)."""
    [like, *_] = automations(90)
    retired, own = "trainjob: end cancelled runs without a process", "trainjob: tell my team"
    for name in (retired, own):
        client.create_automation(like.model_copy(update={"name": name}))

    changes = register_automations(client, dead_after_s=90)
    again = register_automations(client, dead_after_s=90)

    assert [change for change in changes if change.verb != "created"] == [
        Change("removed", f"automation {retired!r}", "no release since needs it")
    ]
    assert {change.verb for change in again} == {"left"}
    found = {automation.name for automation in client.read_automations()}
    assert found == {*NAMES, own}


def test_a_run_that_ended_is_not_watched_any_more_whatever_its_end_is_called() -> None:
    """Else its watch ends in an action that the server refuses, which the Event Feed shows."""
    [watch] = [found for found in automations(90) if found.name == DEAD_RUNS]

    ends = {"Failed", "Cancelled", *(name for name, _ in GOOD_STATES.values())}
    expected = {f"prefect.flow-run.{name}" for name in ends}
    assert isinstance(watch.trigger, EventTrigger)
    assert expected - watch.trigger.expect == set()


@pytest.mark.parametrize(("heartbeat_s", "expected_s"), [(30, 90.0), (180, 540.0), (None, 90.0)])
def test_a_run_counts_as_dead_after_three_heartbeats(
    heartbeat_s: int | None, expected_s: float
) -> None:
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: heartbeat_s}):
        assert default_dead_after_s() == expected_s


def test_where_no_heartbeat_is_set_it_is_counted_by_that_of_prefect_yaml() -> None:
    """Runs of prefect.yaml have that anyway; Prefect's default made it 540 s without a word."""
    # In a process of its own: Prefect has no setting by which one of this process is not set.
    code = "from deployments.automations import *; print(default_dead_after_s())"
    name = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
    env = {key: value for key, value in os.environ.items() if key != name}
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)

    assert float(found.stdout) == 90


def test_an_automation_that_waits_for_another_time_says_so(client: SyncPrefectClient) -> None:
    register_automations(client, 90)

    changes = register_automations(client, 540)

    assert [str(change) for change in changes if change.verb == "changed"] == [
        f"changed  automation {DEAD_RUNS!r}: 90 s -> 540 s"
    ]
