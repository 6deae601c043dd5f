"""What a run tells the server beside its states."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.events import Event
from prefect.events.clients import AssertingEventsClient
from prefect.events.worker import EventsWorker

from flows.run_events import RESTARTED_EVENT, STALLED_EVENT, tell_attempt, tell_restart
from trainjob.errors import TrainingFailed
from trainjob.events import AttemptEnded
from trainjob.failure import Failure
from trainjob.launch.failure import TrainingStalled

NO_STEP = Failure(
    headline="no step for 5m",
    ended="stalled",
    rank=0,
    world_size=2,
    attempt=0,
    node="node-a",
    time="2026-05-04T12:00:00Z",
    exit_code=None,
    signal=None,
    traceback="",
    last_lines=("step 3",),
    log_file=Path("/logs/rank-0.log"),
    log_files=(),
    rule=None,
    restart=True,
)
RUN_ID = "00000000-0000-0000-0000-000000000001"


@pytest.fixture(autouse=True)
def told(prefect_server: str) -> Iterator[None]:
    """Keep the events here in place of sending them to the server."""
    EventsWorker.set_client_override(AssertingEventsClient)
    yield
    EventsWorker.instance().drain()
    EventsWorker.set_client_override(None)
    AssertingEventsClient.reset()


def events() -> list[Event]:
    EventsWorker.instance().wait_until_empty()
    return [event for client in AssertingEventsClient.all for event in client.events]


def ended(error: Exception | None, *, will_restart: bool) -> AttemptEnded:
    return AttemptEnded(0, 1.0, None if error else "finished", error, will_restart, "/logs")


def test_a_restart_is_told_and_an_attempt_that_is_the_last_is_not() -> None:
    tell_attempt(RUN_ID, ended(None, will_restart=False), 0)
    tell_attempt(RUN_ID, ended(TrainingFailed("rank 0 failed"), will_restart=False), 0)
    tell_restart(RUN_ID, "a person has retried it", 0)

    [restarted] = events()
    assert restarted.payload == {"message": "a person has retried it", "restarts": 0}


def test_a_stall_is_told_before_the_restart_that_it_leads_to() -> None:
    tell_attempt(RUN_ID, ended(TrainingStalled(NO_STEP), will_restart=True), 2)

    stalled, restarted = events()
    assert [stalled.event, restarted.event] == [STALLED_EVENT, RESTARTED_EVENT]
    assert stalled.resource.id == restarted.resource.id == f"prefect.flow-run.{RUN_ID}"
    assert restarted.payload["restarts"] == 2
    assert stalled.payload["message"] == NO_STEP.headline
    assert restarted.payload["message"] == f"2 restarts so far: {NO_STEP.headline}"


def test_a_message_is_cut_before_the_server_refuses_it() -> None:
    tell_restart(RUN_ID, "x" * 3_000_000, 0)

    [restarted] = events()
    assert restarted.payload == {"message": "x" * 2000, "restarts": 0}
