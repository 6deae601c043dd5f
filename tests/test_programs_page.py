"""The programs of docs/programs.md, on runs whose process is killed; e2e tests run them whole."""

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.states import Completed, Crashed, Failed, Running, Scheduled

from flows.delivery import AWAITING_RESTART, RESTART_PENDING
from flows.finisher import INTERRUPTED
from flows.training_job import training_job
from tests.waiting import PATIENCE_S, wait_until

PAGE = Path(__file__).parents[1] / "docs" / "programs.md"
SOON_S, LONG_S = 0.2, 3600.0
"""How long a program waits for what becomes of a crashed run: soon over, or for ever."""


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as found:
        yield found


@pytest.fixture
def run_id(client: SyncPrefectClient) -> Iterator[UUID]:
    """Give a run that goes on until a test says otherwise."""
    run = client.create_flow_run(training_job, parameters={"job": {}}, state=Scheduled())
    client.set_flow_run_state(run.id, Running(), force=True)
    yield run.id
    client.delete_flow_run(run.id)


class Program:
    """A program of the page that has submitted nothing yet.

    Args:
        kind: Which of them.
    """

    def __init__(self, kind: str) -> None:
        [text] = re.findall(rf"^```python {kind}\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
        begin = {"sync": "\nkey = ", "async": "\nasyncio.run("}[kind]
        self._names: dict[str, Any] = {}
        exec(text.partition(begin)[0], self._names)
        self._names["get_client"] = self._get_client
        self._num_looks = 0

    def end_of(self, run_id: UUID, patience_s: float) -> "State[Any]":
        found = self._names["end_of"](run_id, poll_s=0.01, patience_s=patience_s)
        return asyncio.run(found) if asyncio.iscoroutine(found) else found

    def has_looked(self) -> None:
        """Wait until it has seen the state that the run has now."""
        before = self._num_looks
        wait_until(lambda: self._num_looks >= before + 2)

    def _get_client(self, **how: Any) -> Any:
        self._num_looks += 1
        return get_client(**how)


@pytest.fixture(params=["sync", "async"])
def program(request: pytest.FixtureRequest) -> Program:
    return Program(request.param)


def test_a_program_waits_for_a_run_that_is_started_again(
    client: SyncPrefectClient, run_id: UUID, program: Program
) -> None:
    states: list[State[Any]] = [
        Crashed(),
        Crashed(name=RESTART_PENDING),
        Scheduled(name=AWAITING_RESTART),
        Running(),
    ]
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(copy_context().run, partial(program.end_of, run_id, LONG_S))
        for state in states:
            client.set_flow_run_state(run_id, state, force=True)
            program.has_looked()
            assert not ended.done(), state.name
        client.set_flow_run_state(run_id, Completed(), force=True)

        assert ended.result(PATIENCE_S).is_completed()


def test_a_run_that_is_about_to_be_started_again_has_not_ended_however_long_that_takes(
    client: SyncPrefectClient, run_id: UUID, program: Program
) -> None:
    client.set_flow_run_state(run_id, Crashed(name=RESTART_PENDING), force=True)

    with ThreadPoolExecutor() as pool:
        ended = pool.submit(copy_context().run, partial(program.end_of, run_id, 0.0))
        program.has_looked()
        client.set_flow_run_state(run_id, Failed(message="no restart is left"), force=True)

        assert ended.result(PATIENCE_S).message == "no restart is left"


@pytest.mark.parametrize(
    ("state", "patience_s"), [(Crashed(), SOON_S), (Crashed(name=INTERRUPTED), LONG_S)]
)
def test_a_program_goes_on_if_a_crashed_run_is_not_started_again(
    client: SyncPrefectClient,
    run_id: UUID,
    program: Program,
    state: "State[Any]",
    patience_s: float,
) -> None:
    client.set_flow_run_state(run_id, state, force=True)

    assert program.end_of(run_id, patience_s).name == state.name
