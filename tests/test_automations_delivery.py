"""Why a process was started for a run, and what it does when the run is taken from it."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import (
    AwaitingRetry,
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    Pending,
    Running,
    Scheduled,
)

from flows import delivery
from flows.delivery import (
    AWAITING_RESTART,
    RESTART_PENDING,
    Delivery,
    delivery_of,
    holding,
    note_restarts,
)
from tests.waiting import PATIENCE_S, wait_until

States = tuple[State[Any], ...]
STARTED: States = (Pending(), Running())
KILLED: States = (Crashed(), Crashed(name=RESTART_PENDING))
AWAITED: States = (Scheduled(name=AWAITING_RESTART),)
LATE: States = (Scheduled(name="Late"),)
REDELIVERED: States = (*AWAITED, *STARTED)
RETRIED_BY_A_PERSON: States = (AwaitingRetry(), *STARTED)


@flow(name="delivered")
def delivered() -> None:
    """Stand for a flow whose runs these tests make."""


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def run_that_was(client: SyncPrefectClient, *states: State[Any]) -> FlowRun:
    """Make a run that went through these states."""
    run = client.create_flow_run(delivered, state=Scheduled())
    return run_that_was_also(client, run, *states)


def run_that_was_also(client: SyncPrefectClient, run: FlowRun, *states: State[Any]) -> FlowRun:
    """Have the run go through more states."""
    for state in states:
        client.set_flow_run_state(run.id, state.fresh_copy(), force=True)
    return client.read_flow_run(run.id)


@pytest.mark.parametrize(
    "states",
    [
        STARTED,
        (*STARTED, Failed(), *RETRIED_BY_A_PERSON),
        (*STARTED, Crashed(), *RETRIED_BY_A_PERSON),
        (*STARTED, *KILLED, *RETRIED_BY_A_PERSON),
        (*STARTED, *KILLED, *REDELIVERED, Failed(), *RETRIED_BY_A_PERSON),
        (*STARTED, Completed(), *RETRIED_BY_A_PERSON),
    ],
    ids=["first", "failed", "crashed", "held", "failed after a restart", "completed"],
)
def test_a_first_start_and_a_retry_of_a_person_have_all_restarts_left(
    client: SyncPrefectClient, states: States
) -> None:
    run = run_that_was(client, *states)
    note_restarts(run.id, 3)

    found = delivery_of(str(run.id))

    assert found == Delivery(
        run.id,
        number=run.run_count,
        is_redelivered=False,
        was_cancelled=False,
        restarts=0,
        deployment_id=None,
    )


def test_a_delivery_after_a_crash_counts_as_a_restart_on_top_of_those_before_it(
    client: SyncPrefectClient,
) -> None:
    run = run_that_was(client, *STARTED, *KILLED, *REDELIVERED)
    first = delivery_of(run.id)
    note_restarts(run.id, first.restarts + 2)  # two more of failed ranks
    run = run_that_was_also(client, run, *KILLED, *AWAITED, *LATE, *STARTED)

    second = delivery_of(run.id)

    assert (first.is_redelivered, first.restarts, first.number) == (True, 1, 2)
    assert (second.is_redelivered, second.restarts, second.number) == (True, 4, 3)


def test_a_crash_that_is_reported_while_the_next_process_starts_changes_no_count(
    client: SyncPrefectClient,
) -> None:
    """As by a busy worker, whose second report of a crash took 19 s."""
    run = run_that_was(client, *STARTED, *KILLED, *AWAITED, Pending(), Crashed(), Running())
    first = delivery_of(run.id)
    note_restarts(run.id, first.restarts)
    run = run_that_was_also(client, run, *KILLED, *AWAITED, Pending(), *KILLED, Running())

    second = delivery_of(run.id)

    assert (first.is_redelivered, first.restarts) == (True, 1)
    assert (second.is_redelivered, second.restarts) == (True, 2)


@pytest.mark.parametrize(
    "end",
    [
        (Cancelling(), *KILLED),
        (Cancelling(), Crashed(), Cancelled(), Crashed(name=RESTART_PENDING)),
    ],
    ids=["killed", "cancelled and held"],
)
def test_a_run_that_was_killed_while_it_was_cancelled_is_known_as_such(
    client: SyncPrefectClient, end: States
) -> None:
    run = run_that_was(client, *STARTED, *end, *REDELIVERED)

    assert delivery_of(run.id).was_cancelled


def test_a_cancel_before_a_retry_of_a_person_does_not_count(client: SyncPrefectClient) -> None:
    cancelled: States = (*STARTED, Cancelling(), Cancelled())
    run = run_that_was(client, *cancelled, *RETRIED_BY_A_PERSON, *KILLED, *REDELIVERED)

    assert not delivery_of(run.id).was_cancelled


@pytest.mark.parametrize(
    "lost",
    [(Crashed(),), KILLED, (*KILLED, *AWAITED)],
    ids=["crashed", "held", "waiting"],
)
def test_a_living_process_takes_its_run_back(client: SyncPrefectClient, lost: States) -> None:
    """As after an outage of the server that was longer than three heartbeats."""
    run = run_that_was(client, *STARTED)

    with holding(delivery_of(run.id), is_restartable=True, poll_s=0.05):
        run_that_was_also(client, run, *lost)
        wait_until(lambda: is_running(client, run.id))
        run_that_was_also(client, run, *lost)
        wait_until(lambda: is_running(client, run.id))

    state = client.read_flow_run(run.id).state
    assert state is not None
    assert state.message is not None
    assert state.message.startswith("its process lives")


def is_running(client: SyncPrefectClient, run_id: UUID) -> bool:
    state = client.read_flow_run(run_id).state
    return state is not None and state.is_running()


def test_a_process_leaves_a_finished_run_as_it_is(client: SyncPrefectClient) -> None:
    run = run_that_was(client, *STARTED)
    with holding(delivery_of(run.id), is_restartable=True, poll_s=0.05):
        pass

    run_that_was_also(client, run, Crashed())

    assert client.read_flow_run(run.id).run_count == 1


@pytest.mark.parametrize(
    "states", [(Crashed(), Pending()), (Crashed(), *STARTED)], ids=["starting", "started"]
)
def test_a_process_whose_run_was_given_to_another_ends_without_a_word(
    client: SyncPrefectClient, prefect_server: str, tmp_path: Path, states: States
) -> None:
    run = run_that_was(client, *STARTED)
    holds = tmp_path / "holds"
    code = (
        "import pathlib, time\n"
        "from flows.delivery import delivery_of, holding\n"
        f"delivery = delivery_of('{run.id}')\n"
        "with holding(delivery, is_restartable=True, poll_s=1.0):\n"
        f"    pathlib.Path({str(holds)!r}).touch()\n"
        "    time.sleep(60)\n"
    )
    env = os.environ | {"PREFECT_API_URL": prefect_server}
    process = subprocess.Popen([sys.executable, "-c", code], env=env)
    wait_until(holds.exists)

    run_that_was_also(client, run, *states)

    assert process.wait(PATIENCE_S) == 0
    state = client.read_flow_run(run.id).state
    assert state is not None
    assert state.type == states[-1].type


def test_a_cancelled_run_that_no_worker_ends_is_ended_by_its_own_process(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_UNATTENDED_CANCEL_S", 0.1)
    arrived: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, _frame: arrived.append(signum))
    run = run_that_was(client, *STARTED)
    try:
        with holding(delivery_of(run.id), is_restartable=False, poll_s=0.05):
            run_that_was_also(client, run, Cancelling())

            wait_until(lambda: bool(arrived))
    finally:
        signal.signal(signal.SIGTERM, before)

    assert arrived == [signal.SIGTERM]


def test_a_process_looks_seldom_while_nothing_is_wrong_and_often_after_trouble(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_that_was(client, *STARTED)
    holder = delivery._Holder(delivery_of(run.id), is_restartable=False)
    young_s = holder._pause_s(5.0)
    monkeypatch.setattr(holder, "_troubled_at", -math.inf)

    calm_s = holder._pause_s(5.0)
    holder._look_at(run.model_copy(update={"state": Cancelling()}), client)
    troubled_s = holder._pause_s(5.0)

    assert (young_s, calm_s, troubled_s) == (5, 18, 5)
