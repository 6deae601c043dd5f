"""Why a process was started for a run, and what it does when the run is taken from it."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL, temporary_settings
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
    keep_tally,
)
from flows.tally import RESTARTS_LABEL, Tally
from tests.s3_faults import Fault, fault_proxy
from tests.waiting import PATIENCE_S, wait_until
from trainjob.attempts import Earlier
from trainjob.events import AttemptEnded, AttemptStarted

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
    keep_tally(run.id, Tally(Earlier(1, 7, 3, 60.0)))

    found = delivery_of(str(run.id))

    assert found == Delivery(
        run.id,
        number=run.run_count,
        is_redelivered=False,
        was_cancelled=False,
        earlier=Earlier(run.run_count - 1, 7, since_attempt=7),
        deployment_id=None,
        num_starts=run.run_count,
    )


def test_a_delivery_after_a_crash_counts_as_a_restart_on_top_of_those_before_it(
    client: SyncPrefectClient,
) -> None:
    run = run_that_was(client, *STARTED, *KILLED, *REDELIVERED)
    first = delivery_of(run.id)
    keep_tally(run.id, Tally(Earlier(1, 5, 3, 60.0)))  # two more of failed ranks
    run = run_that_was_also(client, run, *KILLED, *AWAITED, *LATE, *STARTED)

    second = delivery_of(run.id)

    assert (first.is_redelivered, first.earlier) == (True, Earlier(1, 0, 1))
    assert (second.is_redelivered, second.earlier) == (True, Earlier(2, 5, 4, 60.0))


def test_a_crash_that_is_reported_while_the_next_process_starts_changes_no_count(
    client: SyncPrefectClient,
) -> None:
    """As by a busy worker, whose second report of a crash took 19 s."""
    run = run_that_was(client, *STARTED, *KILLED, *AWAITED, Pending(), Crashed(), Running())
    first = delivery_of(run.id)
    keep_tally(run.id, Tally(first.earlier))
    run = run_that_was_also(client, run, *KILLED, *AWAITED, Pending(), *KILLED, Running())

    second = delivery_of(run.id)

    assert (first.is_redelivered, first.earlier.num_restarts) == (True, 1)
    assert (second.is_redelivered, second.earlier.num_restarts) == (True, 2)


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

    with holding(delivery_of(run.id), Tally(Earlier()), is_restartable=True, poll_s=0.05):
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
    with holding(delivery_of(run.id), Tally(Earlier()), is_restartable=True, poll_s=0.05):
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
        "from flows.tally import Tally\n"
        f"delivery = delivery_of('{run.id}')\n"
        "with holding(delivery, Tally(delivery.earlier), is_restartable=True, poll_s=1.0):\n"
        f"    pathlib.Path({str(holds)!r}).touch()\n"
        "    time.sleep(600)\n"
    )
    env = os.environ | {"PREFECT_API_URL": prefect_server}
    process = subprocess.Popen([sys.executable, "-c", code], env=env)
    wait_until(holds.exists)
    # Between two of the states it would take its run back.
    process.send_signal(signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])

    run_that_was_also(client, run, *states)
    process.send_signal(signal.SIGCONT)

    assert process.wait(PATIENCE_S) == 0
    state = client.read_flow_run(run.id).state
    assert state is not None
    assert state.type == states[-1].type


@pytest.mark.parametrize("ends_before", [False, True], ids=["goes on", "has ended"])
def test_what_was_counted_while_the_server_was_away_is_told_once_it_is_back(
    client: SyncPrefectClient, prefect_server: str, ends_before: bool
) -> None:
    run = run_that_was(client, *STARTED)
    away: list[Fault] = ["503"]
    port = urlsplit(prefect_server).port
    assert port is not None
    killed = AttemptEnded(0, 1.0, None, None, will_restart=True, log_dir="")

    def told() -> list[str]:
        return [path for method, path in proxy.requests if method == "PATCH"]

    with (
        fault_proxy(
            port, lambda method, _: away[0] if away and method == "PATCH" else None
        ) as proxy,
        temporary_settings({PREFECT_API_URL: f"{proxy.endpoint_url}/api"}),
    ):
        tally = Tally(Earlier())
        with holding(delivery_of(run.id), tally, is_restartable=False, poll_s=0.05):
            tally.note(AttemptStarted(0, None))
            tally.note(killed)
            wait_until(told)
            away[:] = away if ends_before else []
            wait_until(lambda: ends_before or restarts(client, run) == 1)
        away.clear()

        wait_until(lambda: restarts(client, run) == 1)


def restarts(client: SyncPrefectClient, run: FlowRun) -> object:
    return client.read_flow_run(run.id).labels.get(RESTARTS_LABEL)


def test_a_process_that_lost_its_run_leaves_what_the_next_one_has_counted(
    client: SyncPrefectClient,
) -> None:
    run = run_that_was(client, *STARTED)
    old = Tally(Earlier())
    holder = delivery._Holder(delivery_of(run.id), old, is_restartable=False)
    run = run_that_was_also(client, run, *KILLED, *REDELIVERED)
    keep_tally(run.id, Tally(Earlier(1, 1, 4)))
    old.note(AttemptStarted(0, None))

    holder._tell_tally(client)

    assert restarts(client, run) == 4


def test_a_cancelled_run_that_no_worker_ends_is_ended_by_its_own_process(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_UNATTENDED_CANCEL_S", 0.1)
    arrived: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, _frame: arrived.append(signum))
    run = run_that_was(client, *STARTED)
    try:
        with holding(delivery_of(run.id), Tally(Earlier()), is_restartable=False, poll_s=0.05):
            run_that_was_also(client, run, Cancelling())

            wait_until(lambda: bool(arrived))
    finally:
        signal.signal(signal.SIGTERM, before)

    assert arrived == [signal.SIGTERM]


def test_a_process_looks_seldom_while_nothing_is_wrong_and_often_after_trouble(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_that_was(client, *STARTED)
    holder = delivery._Holder(delivery_of(run.id), Tally(Earlier()), is_restartable=False)
    young_s = holder._pause_s(5.0)
    monkeypatch.setattr(holder, "_troubled_at", -math.inf)

    calm_s = holder._pause_s(5.0)
    holder._look_at(run.model_copy(update={"state": Cancelling()}), client)
    troubled_s = holder._pause_s(5.0)

    assert (young_s, calm_s, troubled_s) == (5, 18, 5)
