"""Runs under a real worker whose flow process is killed: by the worker that is stopped, or by hand.

What such a run made is saved, its report is written and its state says why. How one whose worker
lives is started again is told by `test_redelivery`.
"""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State

from deployments.automations import register_automations
from flows.tally import RESTARTS_LABEL
from tests.e2e.machine import Machine, begin_run, in_front_of, processes_with
from tests.e2e.watched_runs import SCRIPT, local_steps, page_of, stored_steps, watched_job
from tests.processes import marked_processes
from tests.waiting import wait_until
from trainjob.storage.receipt import read_receipt, verify_receipt

DEAD_AFTER_S = 300  # longer than any test: what is Crashed here is so by somebody's word
HOLD_S = 10
LAST = 4
STEP = 2  # where the first attempts stand until they are asked to leave
RESTARTS = {"auto_restart": 1, "grace": "5s"}
DEAF = SCRIPT.read_text().replace("should_stop()", "False")
pytestmark = [pytest.mark.e2e, pytest.mark.mpi, pytest.mark.timeout(1500)]


@dataclass(frozen=True)
class Story:
    """A run on a machine, and where its things are."""

    machine: Machine
    folder: Path
    run_id: str

    @property
    def run(self) -> FlowRun:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(UUID(self.run_id))

    @property
    def state(self) -> State[Any]:
        state = self.run.state
        assert state is not None
        return state

    @property
    def message(self) -> str:
        return self.state.message or ""

    @property
    def states(self) -> list[str]:
        with get_client(sync_client=True) as client:
            found = client.read_flow_run_states(UUID(self.run_id))
        return [state.name or "" for state in sorted(found, key=lambda state: state.timestamp)]

    @property
    def page(self) -> str:
        return page_of(self.run_id, self.folder.name)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def has_receipt(self) -> bool:
        return (self.out / "_trainjob" / "receipt.json").exists()

    def wait_for(self, condition: Callable[[], object]) -> None:
        wait_until(condition, said=lambda: (self.folder.name, self.states, self.message))

    def kill_flow(self) -> None:
        """Do what the kernel does where memory runs out."""
        mark = f"PREFECT__FLOW_RUN_ID={self.run_id}".encode()
        for pid in processes_with(b"prefect"):
            with suppress(OSError):  # one that was found has ended meanwhile
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    os.kill(pid, signal.SIGKILL)

    def wait_until_explained(self) -> "Story":
        self.wait_for(lambda: "Saved: " in self.message)
        return self

    def wait_until_completed(self) -> "Story":
        self.wait_for(lambda: self.state.is_completed() or self.state.is_failed())
        return self


class Telling:
    """Everything that a story needs to be told."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.machine = machine
        self.folder = folder

    def started(self, name: str, script: str = "", **changes: Any) -> Story:
        """A run that stands in the middle of its training."""
        folder = self.folder / name
        waits = {"steps": LAST, "fault_at": STEP, "go_on": str(self.folder / "never")}
        job = watched_job(folder, waits, name=name, **changes)
        if script:
            (folder / "code" / "train.py").write_text(script)
        run = begin_run("cpu", job | {"logs": {"url": str(folder / "logs")}})
        story = Story(self.machine, folder, str(run.id))
        runs = self.machine.folder / "runs"
        story.wait_for(lambda: local_steps(runs, story.run_id) == [1, STEP])
        story.wait_for(lambda: [*(runs / story.run_id / "metrics").rglob("metrics.jsonl")])
        return story

    def killed(self) -> Story:
        story = self.started("killed", limits={"grace": "15s"})
        story.kill_flow()
        return story.wait_until_explained()

    def killed_without_server(self) -> Story:
        story = self.started("serverless", limits={"grace": "5s"})
        self.machine.server.kill()
        self.machine.server.wait()
        story.kill_flow()
        wait_until(lambda: story.has_receipt)
        self.machine.restart_server()
        return story.wait_until_explained()


Stories = dict[str, "Future[Story]"]


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stories]:
    """Tell all stories to their ends; the worker is stopped once, under three of them."""
    folder = tmp_path_factory.mktemp("killed")
    machine = Machine(folder, {})
    try:
        with in_front_of(machine.api_url):
            with get_client(sync_client=True) as client:
                register_automations(client, DEAD_AFTER_S, HOLD_S)
            yield told(Telling(machine, folder))
    finally:
        machine.end()


def told(telling: Telling) -> Stories:
    machine = telling.machine
    with ThreadPoolExecutor() as pool:

        def tell(story: Callable[..., Story], *given: Any, **more: Any) -> "Future[Story]":
            return pool.submit(copy_context().run, story, *given, **more)

        asked = {"launcher": "torchrun", "limits": {"grace": "15s"}}
        begun = {
            "torchrun": tell(telling.started, "torchrun", **asked),
            "mpi": tell(telling.started, "mpi", script=DEAF, limits={"grace": "2s"}),
            "stopped": tell(telling.started, "stopped", limits=RESTARTS),
        }
        killed = {"killed": tell(telling.killed)}
        wait([*begun.values(), *killed.values()])
        machine.stop_workers()
        stopped = {
            name: tell(lambda story: story.result().wait_until_explained(), story)
            for name, story in begun.items()
            if name != "stopped"
        }
        wait(stopped.values())
        machine.add_worker()
        stopped["stopped"] = tell(lambda: begun["stopped"].result().wait_until_completed())
        wait(stopped.values())
        killed["serverless"] = tell(telling.killed_without_server)
        wait(killed.values())
        machine.stop_workers()  # what their finishers look out for
    return killed | stopped


KILLED = ("its process ended without a word", "flow process died")
STOPPED = ("its worker was stopped", "worker stopped")
REASONS = {"killed": KILLED, "torchrun": STOPPED, "mpi": STOPPED, "serverless": KILLED}


@pytest.mark.parametrize("name", REASONS)
def test_a_run_whose_flow_process_is_killed_is_saved_and_says_why(
    stories: Stories, name: str
) -> None:
    story = stories[name].result()

    reason, rule = REASONS[name]
    assert story.state.name == "Interrupted"
    assert story.state.is_crashed()
    assert reason in story.message
    assert "MISSING" not in story.message
    assert verify_receipt(str(story.out), None).problems == ()
    receipt = read_receipt(str(story.out), None)
    assert receipt.state == "Crashed"
    assert not receipt.is_result
    assert stored_steps(story.folder / "checkpoints") == [1, STEP]
    assert (story.folder / "logs" / "attempt-0" / "rank-0.log").read_text()
    what = [f"# {name}: Crashed", reason, "What failed first", rule, "accuracy"]
    for told_of in (*what, "device-seconds"):
        assert told_of in story.page
    assert "whose time is not known" not in story.page
    assert story.page.count("What the script had saved in its") == (rule == "flow process died")


@pytest.mark.parametrize("name", ["killed", "torchrun", "serverless"])
def test_ranks_that_ask_end_by_themselves_when_the_flow_process_is_killed(
    stories: Stories, name: str
) -> None:
    story = stories[name].result()

    assert (story.out / "model.txt").read_text() == str(STEP)


def test_a_run_with_restarts_is_started_again_once_and_ends_as_if_nothing_had_been(
    stories: Stories,
) -> None:
    story = stories["stopped"].result()

    assert story.state.name == "Completed", (story.states, story.message)
    # Not one AwaitingRestart: its worker may report the crash once more while it starts the next.
    assert story.run.labels[RESTARTS_LABEL] == 1
    assert verify_receipt(str(story.out), None).is_result
    assert (story.out / "starts.txt").read_text().split() == ["0", str(STEP)]
    assert (story.out / "model.txt").read_text() == str(LAST)
    assert stored_steps(story.folder / "checkpoints")[-1] == LAST
    assert "# stopped: Completed" in story.page


@pytest.mark.parametrize("name", [*REASONS, "stopped"])
def test_nothing_of_a_run_whose_flow_process_was_killed_is_left(
    stories: Stories, name: str
) -> None:
    story = stories[name].result()

    assert marked_processes(story.run_id) == {}
    wait_until(lambda: not processes_with(story.run_id.encode()))
