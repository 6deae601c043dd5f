"""Outputs of a run that did not end well: what is saved of them, and what is not."""

import os

from tests.jobs import make_job
from trainjob.events import Saved, listening
from trainjob.job import TrainingJob
from trainjob.saving import save_outputs
from trainjob.storage.settings import StoreSettings
from trainjob.workspace import Workspace


def test_what_could_not_be_saved_of_a_failed_run_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINJOB_WORKDIR", str(tmp_path / "runs"))
    job = TrainingJob.model_validate(make_job(tmp_path))
    folder = Workspace.of_run("run-1").output_dir("train_url")
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"weights")
    os.mkfifo(folder / "pipe")
    events: list[object] = []

    with listening(events.append):
        save_outputs(job, "run-1", StoreSettings(), {}, "Failed")

    (saved,) = [event for event in events if isinstance(event, Saved)]
    assert (saved.label, saved.num_files, saved.size_bytes) == ("train_url", 1, 7)
    assert saved.missing == ("'pipe' is not a regular file",)
    assert (tmp_path / "out" / "model.pt").read_bytes() == b"weights"
