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
from prefect.client.schemas.objects import State
from prefect.states import Cancelling

from flows.quota_lease import QuotaLease
from tests.e2e.machine import Machine, begin_run, in_front_of
from tests.e2e.watched_runs import (
    LAUNCHERS,
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
# What a run is called ends in its launcher.
CANCELLED = ("cancelled-mpi", "cancelled-torchrun")
DEAF = "deaf-torchrun"
QUOTA = "trainjob tag vision"
SHORTEST_LEASE_S = 60.0  # that Prefect allows
OUTLIVING = ("server-torchrun", "worker-mpi", "worker-torchrun")  # the server goes for all of them
pytestmark = [pytest.mark.e2e, pytest.mark.mpi, pytest.mark.timeout(1500)]


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
        """Start a run of a job; the launcher is what its name ends in."""
        launcher = name.rpartition("-")[2]
        folder = self.folder / name
        job = watched_job(folder, hyperparameters, name=name, launcher=launcher, **changes)
        run = begin_run("cpu", job)
        store = self.stores.get(name)
        return Story(self.machine, folder, str(run.id), store.bucket if store else None)

    def cancelled_in_training(self, name: str) -> Story:
        is_deaf = name == DEAF
        told = {"steps": LAST, "fault_at": 2, "fault": "deaf"} if is_deaf else MANY
        story = self.submit(name, told, limits={"grace": "5s"})
        wait_until(lambda: 2 in story.local_steps if is_deaf else story.local_steps)
        story.cancel()
        return story.wait_until_explained()

    def cancelled_in_upload(self, name: str) -> Story:
        store = self.stores[name]
        outputs = [{"name": "train_url", "url": f"s3://{store.bucket}/out/"}]
        story = self.submit(name, {"steps": 3}, outputs=outputs)
        wait_until(store.has_put.is_set)
        story.cancel()
        wait_until((story.workspace / "finish.json").exists)
        store.denies = name.startswith("denied")
        store.may_go_on.set()
        return story.wait_until_explained()

    def started(self, name: str) -> Story:
        """A run that waits in the middle of its training."""
        go_on = str(self.folder / name / "go-on")
        story = self.submit(name, {"steps": LAST, "fault_at": 2, "go_on": go_on})
        wait_until(lambda: 2 in story.local_steps)
        return story

    @staticmethod
    def ended(story: Story) -> Story:
        """Such a run, at its end."""
        (story.folder / "go-on").touch()
        wait_until(story.is_over)
        return story


Stories = dict[str, "Future[Story]"]


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory, s3: Any) -> Iterator[Stories]:
    """Tell all stories to their ends, several of them at the same time."""
    folder = tmp_path_factory.mktemp("worker")
    stores = {
        "uploading-torchrun": SlowStore(s3.new_bucket(), waits_at="receipt.json"),
        "denied-mpi": SlowStore(s3.new_bucket(), waits_at="model.txt"),
    }

    def rule(method: str, path: str) -> Fault:
        return next((f for store in stores.values() if (f := store.rule(method, path))), None)

    with fault_proxy(s3.port, rule) as proxy:
        machine = Machine(folder, s3.env | {"AWS_ENDPOINT_URL": proxy.endpoint_url})
        try:
            with in_front_of(machine.api_url):
                yield told(Telling(machine, folder, stores))
        finally:
            machine.end()


def take_a_place_for_good() -> None:
    """Take the only place in a quota and say no more of it, like a run that is killed."""
    with get_client(sync_client=True) as client, pytest.MonkeyPatch.context() as patch:
        client.upsert_global_concurrency_limit_by_name(QUOTA, 1)
        patch.setattr("flows.quota_lease._LEASE_S", SHORTEST_LEASE_S)
        assert QuotaLease.take([QUOTA])
        # At once, unless the machine stood still until the lease was over.
        wait_until(lambda: not QuotaLease.take([QUOTA]))


def told(telling: Telling) -> Stories:
    # More at a time have the server refuse requests for minutes, on SQLite and two cores.
    with ThreadPoolExecutor(max_workers=3) as pool:

        def tell(story: Callable[..., Story], *given: Any) -> "Future[Story]":
            return pool.submit(copy_context().run, story, *given)

        def end(*names: str) -> Stories:
            # Within the future of the story: one that could not begin fails its own test only.
            return {
                name: tell(lambda of: telling.ended(of.result()), waiting[name]) for name in names
            }

        waiting = {name: tell(telling.started, name) for name in OUTLIVING}
        cancelled = {name: tell(telling.cancelled_in_training, name) for name in CANCELLED}
        cancelled |= {name: tell(telling.cancelled_in_upload, name) for name in telling.stores}
        wait([*waiting.values(), *cancelled.values()])
        take_a_place_for_good()
        telling.machine.restart_server()
        restarted = end("server-torchrun") | {DEAF: tell(telling.cancelled_in_training, DEAF)}
        wait(restarted.values())
        telling.machine.kill_worker()
        return cancelled | restarted | end("worker-mpi", "worker-torchrun")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_run_that_is_cancelled_while_it_trains_saves_what_there_is(
    stories: Stories, launcher: str
) -> None:
    story = stories[f"cancelled-{launcher}"].result()

    out = str(story.folder / "out")
    stopped_at = int((story.folder / "out" / "model.txt").read_text())
    assert story.state.name == "Cancelled"
    assert marked_processes(story.run_id) == {}
    assert verify_receipt(out, None).problems == ()
    assert read_receipt(out, None).state == "Cancelled"
    assert stored_steps(story.folder / "checkpoints")[-1] == stopped_at
    for told_of in (story.last_message, page_of(story.run_id, f"cancelled-{launcher}")):
        assert "MISSING" not in told_of
        assert out in told_of
        assert str(story.folder / "checkpoints") in told_of


def test_a_run_that_is_cancelled_and_does_not_listen_is_killed_and_saves_what_there_is(
    stories: Stories,
) -> None:
    """One of its ranks waits for the other, which ignores SIGTERM."""
    story = stories[DEAF].result()

    out = str(story.folder / "out")
    assert story.state.name == "Cancelled"
    assert marked_processes(story.run_id) == {}
    assert verify_receipt(out, None).problems == ()
    files = {file.path for file in read_receipt(out, None).files}
    assert "starts.txt" in files
    assert "model.txt" not in files
    assert stored_steps(story.folder / "checkpoints")[-1] == 2
    assert "MISSING" not in story.last_message


def test_a_run_that_is_cancelled_while_it_uploads_is_finished_by_another_process(
    stories: Stories, s3: Any
) -> None:
    story = stories["uploading-torchrun"].result()

    url = f"s3://{story.bucket}/out/"
    assert story.state.name == "Cancelled"
    assert marked_processes(story.run_id) == {}
    assert verify_receipt(url, s3.settings).problems == ()
    files = {file.path for file in read_receipt(url, s3.settings).files}
    assert files >= {"model.txt", "starts.txt"}
    for told_of in (story.last_message, page_of(story.run_id, "uploading-torchrun")):
        assert "MISSING" not in told_of
        assert f"train_url: {len(files)} files" in told_of
        assert f"at {url}" in told_of


def test_a_run_that_is_cancelled_and_cannot_upload_says_what_is_missing(stories: Stories) -> None:
    story = stories["denied-mpi"].result()

    assert story.state.name == "Cancelled"
    assert marked_processes(story.run_id) == {}
    left = story.workspace / "outputs" / "train_url"
    assert (left / "model.txt").read_text() == "3"
    assert stored_steps(story.folder / "checkpoints")[-1] == 3
    for told_of in (story.last_message, page_of(story.run_id, "denied-mpi")):
        assert "train_url: 0 files" in told_of
        assert "MISSING" in told_of
        assert str(left) in told_of


@pytest.mark.parametrize("name", OUTLIVING)
def test_a_training_outlives_its_server_and_its_worker(stories: Stories, name: str) -> None:
    story = stories[name].result()

    assert story.state.name == "Completed", story.message
    assert marked_processes(story.run_id) == {}
    assert (story.folder / "out" / "starts.txt").read_text().split() == ["0"]
    assert (story.folder / "out" / "model.txt").read_text() == str(LAST)
    assert verify_receipt(str(story.folder / "out"), None).is_result
    assert stored_steps(story.folder / "checkpoints")[-1] == LAST


@pytest.mark.usefixtures("stories")
def test_the_place_of_a_killed_run_in_a_quota_is_free_again_after_a_restart_of_the_server() -> None:
    def take() -> bool:
        return QuotaLease.take([QUOTA]) is not None

    wait_until(take)
