"""Runs under a real worker: cancelled at bad moments, and without their server or their worker.

What happens when flow processes are killed is told by `test_redelivery`.
"""

import threading
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
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from tests.e2e.machine import Machine
from tests.e2e.watched_runs import (
    local_steps,
    page_of,
    stored_steps,
    watched_job,
)
from tests.processes import marked_processes
from tests.s3_faults import Fault, fault_proxy
from tests.waiting import PATIENCE_S, wait_until
from trainjob.storage.receipt import read_receipt, verify_receipt

LAST = 4
MANY = {"steps": 5000, "step_s": 0.05}
pytestmark = [pytest.mark.e2e, pytest.mark.mpi, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Story:
    """A run on a machine, and where its things are."""

    machine: Machine
    folder: Path
    run_id: str
    bucket: str | None = None

    @property
    def workspace(self) -> Path:
        return self.machine.folder / "runs" / self.run_id

    @property
    def state(self) -> State[Any]:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(self.run_id)).state
        assert state is not None
        return state

    @property
    def message(self) -> str:
        return self.state.message or ""

    @property
    def last_message(self) -> str:
        """The message in which the run stays, after its worker had its word too."""
        with suppress(AssertionError):
            wait_until(lambda: "Saved: " in self.message)
        return self.message

    @property
    def local_steps(self) -> list[int]:
        return local_steps(self.machine.folder / "runs", self.run_id)

    def is_over(self) -> bool:
        return self.state.is_final()

    def cancel(self) -> None:
        """Do what the button in the UI does."""
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(self.run_id), Cancelling())

    def wait_until_explained(self) -> "Story":
        wait_until(lambda: "Saved: " in self.message or self.state.is_failed())
        return self


class SlowStore:
    """Rules of a store for the bucket of one run: a put can be made to wait, and all to fail."""

    def __init__(self, bucket: str, waits_at: str) -> None:
        self.bucket = bucket
        self.waits_at = waits_at
        self.has_put = threading.Event()
        self.may_go_on = threading.Event()
        self.denies = False

    def rule(self, method: str, path: str) -> Fault:
        if f"/{self.bucket}/" not in path:
            return None
        if method == "PUT" and self.waits_at in path:
            self.has_put.set()
            if not self.may_go_on.is_set():
                self.may_go_on.wait(PATIENCE_S)
                return "gone"  # who sent it has ended meanwhile, and it must not arrive late
        return "403" if self.denies else None


class Telling:
    """Everything that a story needs to be told."""

    def __init__(self, machine: Machine, folder: Path, stores: dict[str, SlowStore]) -> None:
        self.machine = machine
        self.folder = folder
        self.stores = stores

    def submit(self, name: str, hyperparameters: dict[str, Any], **changes: Any) -> Story:
        folder = self.folder / name
        job = watched_job(folder, hyperparameters, name=name, **changes)
        parameters = {"job": job}
        run = run_deployment("training-job/cpu", parameters=parameters, timeout=0)
        assert isinstance(run, FlowRun)
        store = self.stores.get(name)
        return Story(self.machine, folder, str(run.id), store.bucket if store else None)

    def cancelled_in_training(self) -> Story:
        story = self.submit("cancelled", MANY, limits={"grace": "5s"})
        wait_until(lambda: story.local_steps)
        story.cancel()
        return story.wait_until_explained()

    def cancelled_in_upload(self, name: str) -> Story:
        store = self.stores[name]
        outputs = [{"name": "train_url", "url": f"s3://{store.bucket}/out/"}]
        story = self.submit(name, {"steps": 3}, outputs=outputs)
        wait_until(store.has_put.is_set)
        story.cancel()
        wait_until((story.workspace / "finish.json").exists)
        store.denies = name == "denied"
        store.may_go_on.set()
        return story.wait_until_explained()

    def started(self, name: str) -> Story:
        """A run that waits in the middle of its training."""
        go_on = str(self.folder / name / "go-on")
        story = self.submit(name, {"steps": LAST, "fault_at": 2, "go_on": go_on})
        wait_until(lambda: 2 in story.local_steps)
        return story

    def server_restarted(self, story: Story) -> Story:
        self.machine.restart_server()
        return self._going_on(story)

    def worker_killed(self, story: Story) -> Story:
        self.machine.worker.kill()
        self.machine.worker.wait()
        return self._going_on(story)

    @staticmethod
    def _going_on(story: Story) -> Story:
        (story.folder / "go-on").touch()
        wait_until(story.is_over)
        return story


Stories = dict[str, "Future[Story]"]


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory, s3: Any) -> Iterator[Stories]:
    """Tell all stories to their ends: those of a cancel at the same time, then the others."""
    folder = tmp_path_factory.mktemp("worker")
    stores = {
        "uploading": SlowStore(s3.new_bucket(), waits_at="receipt.json"),
        "denied": SlowStore(s3.new_bucket(), waits_at="model.txt"),
    }

    def rule(method: str, path: str) -> Fault:
        return next((f for store in stores.values() if (f := store.rule(method, path))), None)

    with fault_proxy(s3.port, rule) as proxy:
        machine = Machine(folder, s3.env | {"AWS_ENDPOINT_URL": proxy.endpoint_url})
        try:
            with temporary_settings({PREFECT_API_URL: machine.api_url}):
                yield told(Telling(machine, folder, stores))
        finally:
            machine.end()


def told(telling: Telling) -> Stories:
    with ThreadPoolExecutor() as pool:

        def tell(story: Callable[..., Story], *given: Any) -> "Future[Story]":
            return pool.submit(copy_context().run, story, *given)

        server, worker = tell(telling.started, "server"), tell(telling.started, "worker")
        cancelled = {
            "cancelled": tell(telling.cancelled_in_training),
            "uploading": tell(telling.cancelled_in_upload, "uploading"),
            "denied": tell(telling.cancelled_in_upload, "denied"),
        }
        wait([server, worker, *cancelled.values()])
        restarted = tell(lambda: telling.server_restarted(server.result()))
        wait([restarted])
        killed = tell(lambda: telling.worker_killed(worker.result()))
    return cancelled | {"server": restarted, "worker": killed}


def test_a_run_that_is_cancelled_while_it_trains_saves_what_there_is(stories: Stories) -> None:
    story = stories["cancelled"].result()

    out = str(story.folder / "out")
    stopped_at = int((story.folder / "out" / "model.txt").read_text())
    assert story.state.name == "Cancelled"
    assert marked_processes(story.run_id) == {}
    assert verify_receipt(out, None).problems == ()
    assert read_receipt(out, None).state == "Cancelled"
    assert stored_steps(story.folder / "checkpoints")[-1] == stopped_at
    for told_of in (story.last_message, page_of(story.run_id, "cancelled")):
        assert "MISSING" not in told_of
        assert out in told_of
        assert str(story.folder / "checkpoints") in told_of


def test_a_run_that_is_cancelled_while_it_uploads_is_finished_by_another_process(
    stories: Stories, s3: Any
) -> None:
    story = stories["uploading"].result()

    url = f"s3://{story.bucket}/out/"
    assert story.state.name == "Cancelled"
    assert marked_processes(story.run_id) == {}
    assert verify_receipt(url, s3.settings).problems == ()
    files = {file.path for file in read_receipt(url, s3.settings).files}
    assert files >= {"model.txt", "starts.txt"}
    for told_of in (story.last_message, page_of(story.run_id, "uploading")):
        assert "MISSING" not in told_of
        assert f"train_url: {len(files)} files" in told_of
        assert f"at {url}" in told_of


def test_a_run_that_is_cancelled_and_cannot_upload_says_what_is_missing(stories: Stories) -> None:
    story = stories["denied"].result()

    assert story.state.name == "Cancelled"
    assert marked_processes(story.run_id) == {}
    left = story.workspace / "outputs" / "train_url"
    assert (left / "model.txt").read_text() == "3"
    assert stored_steps(story.folder / "checkpoints")[-1] == 3
    for told_of in (story.last_message, page_of(story.run_id, "denied")):
        assert "train_url: 0 files" in told_of
        assert "MISSING" in told_of
        assert str(left) in told_of


@pytest.mark.parametrize("name", ["server", "worker"])
def test_a_training_outlives_its_server_and_its_worker(stories: Stories, name: str) -> None:
    story = stories[name].result()

    assert story.state.name == "Completed", story.message
    assert marked_processes(story.run_id) == {}
    assert (story.folder / "out" / "starts.txt").read_text().split() == ["0"]
    assert (story.folder / "out" / "model.txt").read_text() == str(LAST)
    assert verify_receipt(str(story.folder / "out"), None).is_result
    assert stored_steps(story.folder / "checkpoints")[-1] == LAST
