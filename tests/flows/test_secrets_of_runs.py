"""What a run leaves is saved whatever became of its secrets, and its logs never with them."""

import os
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled

from flows.guarding import Finisher
from flows.training_job import training_job
from tests.jobs import make_job
from trainjob.events import AttemptEnded, AttemptStarted, Event, Noted, Saved, listening
from trainjob.job import TrainingJob
from trainjob.run_record import RunRecord
from trainjob.saving import save_checkpoints_and_logs
from trainjob.storage.settings import StoreSettings
from trainjob.workspace import Workspace

VALUE = "k3y-that/nobody reads"
TELLING = """\
import argparse, os, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--data_url")
parser.add_argument("--train_url", type=pathlib.Path)
parser.add_argument("--scale")
parser.add_argument("--checkpoint_dir")
args = parser.parse_args()
(args.train_url / "half.txt").write_text("half")
print("key", os.environ["API_KEY"], flush=True)
raise ValueError(os.environ["API_KEY"])
"""


def telling_job(folder: Path) -> dict[str, Any]:
    return make_job(
        folder,
        TELLING,
        secrets={"API_KEY": "key-of-run"},
        logs={"url": str(folder / "kept-logs")},
        checkpoints={"url": str(folder / "kept-checkpoints")},
    )


@pytest.mark.usefixtures("prefect_server")
def test_a_run_whose_secret_is_deleted_meanwhile_saves_all_that_it_has(tmp_path: Path) -> None:
    Secret(value=VALUE).save("key-of-run", overwrite=True)

    def delete_it(event: Event) -> None:
        if isinstance(event, AttemptEnded):
            Secret.delete("key-of-run")

    with listening(delete_it):
        state = training_job(TrainingJob.parse(telling_job(tmp_path)), return_state=True)

    assert state.is_failed()
    assert "ValueError: ***" in (state.message or "")
    assert (tmp_path / "out" / "half.txt").read_text() == "half"
    logs = tmp_path / "kept-logs" / "attempt-0"
    assert "key ***" in (logs / "rank-0.log").read_text()
    assert VALUE not in (logs / "records" / "error-0.json").read_text()


def stopped_run(folder: Path, run_id: str) -> RunRecord:
    """Return a run that has written logs, outputs and a checkpoint, and saved nothing of it."""
    record = RunRecord(run_id, "copy", TrainingJob.parse(telling_job(folder)))
    workspace = record.workspace
    for place in (workspace.output_dir("train_url"), workspace.checkpoints):
        place.mkdir(parents=True)
        (place / "half.txt").write_text("half")
    workspace.attempt_logs(0).mkdir(parents=True)
    (workspace.attempt_logs(0) / "rank-0.log").write_text(f"key {VALUE}\n")
    record.note(AttemptStarted(0, None))
    return record


def test_logs_whose_secrets_are_not_known_stay_on_the_machine_and_the_rest_is_saved(
    tmp_path: Path,
) -> None:
    record = stopped_run(tmp_path, "some-run")
    assert record.job is not None
    events: list[Event] = []

    with listening(events.append):
        save_checkpoints_and_logs(record.job, record.run_id, StoreSettings(), secrets=())

    assert [event.label for event in events if isinstance(event, Saved)] == ["checkpoints"]
    [note] = [event.text for event in events if isinstance(event, Noted)]
    assert "the logs are not sent to" in note
    assert str(Workspace.of_run("some-run").logs) in note
    assert not (tmp_path / "kept-logs").exists()
    assert (tmp_path / "kept-checkpoints").exists()


@flow(name="stopped")
def _stopped() -> None:
    """Stand for the flow whose run the finisher finishes."""


def cancelled_run() -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.create_flow_run(_stopped, state=Cancelled())


def test_who_finishes_a_run_knows_its_secrets_from_memory_alone(
    tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = str(cancelled_run().id)
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", run_id)
    record = stopped_run(tmp_path, run_id)
    finisher = Finisher(record, {VALUE})
    finisher.lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)

    assert finisher.start()
    assert finisher.process is not None
    try:
        started = Path(f"/proc/{finisher.process.pid}")
        shown = (started / "cmdline").read_bytes() + (started / "environ").read_bytes()
        files = [file for file in record.workspace.root.rglob("*") if file.is_file()]
        holding = [file.name for file in files if VALUE.encode() in file.read_bytes()]
        is_done = finisher.wait()
    finally:
        finisher.process.kill()  # it would look for a while after what the worker says
        finisher.process.wait()
        os.close(finisher.lock)

    assert is_done
    assert VALUE.encode() not in shown
    assert holding == ["rank-0.log"]
    assert (tmp_path / "kept-logs" / "attempt-0" / "rank-0.log").read_text() == "key ***\n"
    assert (tmp_path / "out" / "half.txt").read_text() == "half"
