"""A metric of the job that no line has is told when the training ends, not left out in silence."""

from pathlib import Path
from uuid import uuid4

import pytest

from tests.jobs import make_job
from trainjob.attempts import Earlier
from trainjob.events import Event, Noted, listening
from trainjob.job import TrainingJob
from trainjob.metrics.patterns import MetricPatterns
from trainjob.metrics.recorder import MetricsRecorder
from trainjob.plan import program_of
from trainjob.storage.settings import StoreSettings
from trainjob.training import train_job
from trainjob.workspace import Workspace

# Nobody else's: the end of a run kills all that bears its mark on this machine.
RUN_ID = str(uuid4())
SCRIPT = """
from trainjob.progress import report
print("loss = 0.5")
report(1, accuracy=0.9)
"""


def test_a_metric_without_a_value_is_told_with_its_regex(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINJOB_WORKDIR", str(tmp_path / "runs"))
    metrics = [
        {"name": "loss", "regex": r"loss = (\S+)"},
        {"name": "accuracy", "regex": r"acc: (\S+)"},
        {"name": "lr", "regex": r"lr: (\S+)"},
    ]
    job = TrainingJob.parse(make_job(tmp_path, metrics=metrics))
    workspace = Workspace.of_run(RUN_ID)
    workspace.code.mkdir(parents=True)
    (workspace.code / "train.py").write_text(SCRIPT)
    recorder = MetricsRecorder(MetricPatterns(job.metrics))
    events: list[Event] = []

    with listening(events.append):
        train_job(
            job,
            program_of(job, workspace),
            StoreSettings(),
            recorder,
            run_id=RUN_ID,
            earlier=Earlier(),
        )

    said = [event.text for event in events if isinstance(event, Noted)]
    [note] = [text for text in said if text.startswith("metric ")]
    assert "'lr'" in note
    assert r"lr: (\\S+)" in note
