"""The process that finishes a run whose own process is about to be killed."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_HOME
from prefect.states import Cancelled, Cancelling, Running

from flows.finisher import Call, _Finish
from flows.guarding import STOPPED_BY_SIGTERM, Finisher
from flows.training_job import training_job
from tests.e2e.machine import processes_with
from tests.e2e.watched_runs import page_of
from tests.interruptions import Stop
from tests.jobs import make_job
from tests.waiting import wait_until
from trainjob.errors import TrainingFailed
from trainjob.events import AttemptStarted
from trainjob.job import TrainingJob
from trainjob.run_lock import alone_in
from trainjob.run_record import RunRecord
from trainjob.storage.checkpoint_mirror import CheckpointMirror
from trainjob.storage.receipt import read_receipt, verify_receipt

Begin = Callable[..., tuple[RunRecord, Finisher]]


@pytest.fixture
def begin(tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Make a run as the process of a worker has it, and end the finisher of it."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("PREFECT_HOME", str(PREFECT_HOME.value()))
    finishers: list[Finisher] = []

    def make(state: Any, **changes: Any) -> tuple[RunRecord, Finisher]:
        job = make_job(tmp_path, **changes)
        with get_client(sync_client=True) as client:
            run = client.create_flow_run(training_job, parameters={"job": job}, state=state)
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(run.id))
        record = RunRecord(str(run.id), "copy", TrainingJob.parse(job))
        finishers.append(Finisher(record))
        return record, finishers[-1]

    yield make
    for finisher in finishers:
        if finisher.process is not None:
            finisher.process.kill()  # it would wait for the last word of a worker
            finisher.process.wait()


def finish(record: RunRecord, finisher: Finisher) -> str:
    """Have the finisher do its work, and return the page that it has left."""
    with alone_in(record.workspace, grace_s=1) as finisher.lock:
        assert finisher.start()
        assert finisher.wait()
    return page_of(record.run_id, "copy")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("is_used", [True, False])
def test_a_run_that_was_cancelled_before_it_trained_leaves_the_checkpoints_of_others_alone(
    tmp_path: Path, begin: Begin, is_used: bool
) -> None:
    kept, own = tmp_path / "kept", tmp_path / "own"
    own.mkdir()
    (own / "model.txt").write_text("weights")
    if is_used:
        CheckpointMirror(own, str(kept), None, job="copy", run_id="run-1").push(is_final=True)
    before = files_of(kept)
    record, finisher = begin(Cancelling(), checkpoints={"url": str(kept)})

    page = finish(record, finisher)

    assert "# copy: Cancelled" in page
    assert "checkpoints: " not in page
    assert files_of(kept) == before
    with get_client(sync_client=True) as client:
        run_id = UUID(record.run_id)
        client.set_flow_run_state(run_id, Cancelled(), force=True)
        text = f"{STOPPED_BY_SIGTERM}. Saved: there was nothing to save"
        wait_until(lambda: text in str(client.read_flow_run(run_id).state))


def test_the_word_of_a_worker_is_explained_however_late_it_comes_and_if_it_comes_again(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, asking = begin(Cancelling())
    order = asking._order().model_copy(update={"flow_pid": os.getppid()})
    passed_s = 0.0

    def sleep(seconds: float) -> None:
        """Let the time pass in which the worker says its word after 3 minutes, and again."""
        nonlocal passed_s
        before, passed_s = passed_s, passed_s + seconds
        for word_s in (180, 245):
            if before < word_s <= passed_s:
                client.set_flow_run_state(UUID(record.run_id), Cancelled(message="by a worker"))

    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: passed_s)
    monkeypatch.setattr("flows.finisher.time", clock)
    with get_client(sync_client=True) as client:
        with alone_in(record.workspace, grace_s=1) as lock:
            _Finish(order, Call(os.dup(lock), is_asked=True, worker=None), record).run()
        state = client.read_flow_run(UUID(record.run_id)).state

    text = f"{STOPPED_BY_SIGTERM}. Saved: there was nothing to save"
    assert state is not None
    assert (state.name, state.message) == ("Cancelled", text)
    assert 245 < passed_s < 400


@pytest.mark.parametrize(("state", "told"), [(Cancelling, "Cancelled"), (Running, "Failed")])
def test_a_failed_run_keeps_its_reason_when_another_process_finishes_it(
    tmp_path: Path, begin: Begin, state: Any, told: str
) -> None:
    record, finisher = begin(state())
    record.note(AttemptStarted(record.workspace.start_attempt(("train_url",)), None))
    (record.workspace.output_dir("train_url") / "model.txt").write_text("weights")
    finisher.failure = TrainingFailed("rank 0 failed: ValueError: no such layer")

    page = finish(record, finisher)

    out = str(tmp_path / "out")
    assert f"# copy: {told}" in page
    assert "ValueError: no such layer" in page
    assert f"train_url: 1 file, 7 B at {out}" in page
    assert verify_receipt(out, None).problems == ()
    assert read_receipt(out, None).state == "Failed"


@pytest.mark.parametrize(
    ("place", "line"), [("within", b"k"), ("within", b"f"), ("before", b"f"), ("after", b"k")]
)
def test_a_start_that_is_interrupted_starts_no_second_process(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, place: str, line: bytes
) -> None:
    """As by a second SIGTERM, at whatever moment it comes."""
    record, finisher = begin(Cancelling())
    say = Finisher._say

    def interrupted(finisher: Finisher, said: bytes) -> None:
        if not said.startswith(line):
            say(finisher, said)
            return
        monkeypatch.setattr(Finisher, "_say", say)
        if place == "within":
            assert finisher.process is not None
            assert finisher.process.stdin is not None
            finisher.process.stdin.write(b"\n" + said[: len(said) // 2])
        if place == "after":
            say(finisher, said)
        raise Stop

    monkeypatch.setattr(Finisher, "_say", interrupted)
    with alone_in(record.workspace, grace_s=1) as finisher.lock:
        with pytest.raises(Stop):
            finisher.start()
        first = finisher.process
        assert finisher.start()
        assert finisher.start()

        assert first is not None
        assert finisher.process is first
        assert finisher.wait()
        assert processes_with(os.fsencode(record.workspace.root)) == [first.pid]
