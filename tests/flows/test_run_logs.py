"""Following the log of a run to its last line."""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed, Crashed

from flows import run_logs
from flows.server_client import configured_server
from flows.training_job import training_job


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as found:
        yield found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_logs, "_POLL_S", 0.05)
    monkeypatch.setattr(run_logs, "_SETTLE_S", 0.2)


@pytest.fixture
def ended(client: SyncPrefectClient) -> Iterator[Callable[[State[None]], FlowRun]]:
    """Make runs that are over; they are deleted afterwards."""
    runs: list[FlowRun] = []

    def make(state: State[None]) -> FlowRun:
        runs.append(client.create_flow_run(training_job, parameters={"job": {}}, state=state))
        return runs[-1]

    yield make
    for run in runs:
        client.delete_flow_run(run.id)


def log(client: SyncPrefectClient, run: FlowRun, *messages: str) -> None:
    line = {"name": "prefect.flow_runs", "level": 20, "flow_run_id": str(run.id)}
    now = datetime.now(UTC).isoformat()
    lines = [{**line, "timestamp": now, "message": message} for message in messages]
    client.request("POST", "/logs/", json=lines)


def test_lines_that_a_busy_server_has_long_after_the_end_are_said_too(
    client: SyncPrefectClient, ended: Callable[[State[None]], FlowRun]
) -> None:
    run = ended(Completed())
    said: list[str] = []
    log(client, run, "the first")
    last = (client, run, "the last", "Finished in state Completed()")
    writer = threading.Timer(1.5, log, last)

    writer.start()
    with configured_server() as asking:
        run_logs.follow(asking, run.id, said.append)
    writer.join()

    assert [line.partition(" ")[2] for line in said] == [
        "the first",
        "the last",
        "Finished in state Completed()",
    ]


@pytest.mark.parametrize("state", [Completed(), Crashed()], ids=["completed", "crashed"])
def test_a_run_whose_process_never_said_that_it_finished_is_not_followed_for_ever(
    ended: Callable[[State[None]], FlowRun], monkeypatch: pytest.MonkeyPatch, state: State[None]
) -> None:
    monkeypatch.setattr(run_logs, "_LATEST_S", 0.5)
    run = ended(state)

    with configured_server() as asking:
        over = run_logs.follow(asking, run.id, print)

    assert over.id == run.id
