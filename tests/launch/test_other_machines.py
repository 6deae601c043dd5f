"""A run that goes on on another machine: its steps, its outputs, and the logs of every attempt.

Two machines are two folders for workspaces that share the stores.
"""

import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.jobs import make_job
from trainjob.attempts import Earlier
from trainjob.errors import TrainingFailed
from trainjob.job import TrainingJob
from trainjob.metrics.patterns import MetricPatterns
from trainjob.metrics.recorder import MetricsRecorder
from trainjob.plan import program_of
from trainjob.saving import save_outputs
from trainjob.storage.settings import StoreSettings
from trainjob.training import train_job
from trainjob.workspace import Workspace

# Nobody else's: the end of a run kills all that bears its mark on this machine.
RUN_ID = str(uuid4())
# One epoch an attempt, and then its machine is lost.
SCRIPT = """\
import os, pathlib, sys
checkpoint = pathlib.Path(os.environ["TRAINJOB_CHECKPOINT_DIR"], "last.txt")
epoch = int(checkpoint.read_text()) + 1 if checkpoint.exists() else 0
(pathlib.Path(os.environ["TRAIN_URL"]) / f"epoch-{epoch}").write_text(MACHINE)
checkpoint.write_text(str(epoch))
print("epoch", epoch, MACHINE)
sys.exit(3)
"""


def writing(*names: str) -> str:
    """Return a script that writes these outputs and saves no checkpoint before it fails."""
    return (
        "import os, pathlib, sys\n"
        "folder = pathlib.Path(os.environ['TRAIN_URL'])\n"
        f"for name in {names!r}: (folder / name).write_text(MACHINE)\n"
        "sys.exit(3)\n"
    )


class Machines:
    """Machines that one run is on, one after the other."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        self._monkeypatch = monkeypatch
        self._folder = folder
        stores = {
            "checkpoints": {"url": str(folder / "checkpoints")},
            "logs": {"url": str(folder / "logs")},
        }
        self.job = TrainingJob.parse(make_job(folder, **stores | changes))

    def train_on(self, name: str, earlier: Earlier, script: str = SCRIPT) -> int:
        """Train there until that machine is lost, and return the number of the attempt."""
        self._monkeypatch.setenv("TRAINJOB_WORKDIR", str(self._folder / name))
        workspace = Workspace.of_run(RUN_ID)
        shutil.rmtree(workspace.code, ignore_errors=True)
        workspace.code.mkdir(parents=True)
        (workspace.code / "train.py").write_text(script.replace("MACHINE", repr(name)))
        with pytest.raises(TrainingFailed):
            train_job(
                self.job,
                program_of(self.job, workspace),
                StoreSettings(),
                MetricsRecorder(MetricPatterns(self.job.metrics)),
                run_id=RUN_ID,
                earlier=earlier,
            )
        return workspace.last_attempt

    def finish(self) -> list[str]:
        """Upload the outputs from the last machine, and return what is in their store then."""
        save_outputs(self.job, RUN_ID, StoreSettings(), {}, "Failed")
        return sorted(file.name for file in (self._folder / "out").glob("epoch-*"))

    @property
    def outputs(self) -> Path:
        """The output that the script writes on the machine that the run is on."""
        return Workspace.of_run(RUN_ID).output_dir("train_url")

    def logs(self) -> list[str]:
        """Return the logs of rank 0 that the store has, in the order of their attempts."""
        files = sorted((self._folder / "logs").glob("attempt-*/rank-0.log"))
        return [file.read_text().strip() for file in files]


def test_a_retry_on_another_machine_keeps_outputs_and_logs_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = Machines(tmp_path, monkeypatch)

    machines.train_on("a", Earlier())
    machines.train_on("b", Earlier(num_processes=1, num_attempts=1))

    assert machines.finish() == ["epoch-0", "epoch-1"]
    assert machines.logs() == ["epoch 0 a", "epoch 1 b"]


def test_a_machine_that_gets_its_run_back_takes_what_another_one_has_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = Machines(tmp_path, monkeypatch)

    machines.train_on("a", Earlier())
    machines.train_on("b", Earlier(num_processes=1, num_attempts=1))
    machines.train_on("a", Earlier(num_processes=2, num_attempts=2))

    assert machines.finish() == ["epoch-0", "epoch-1", "epoch-2"]
    assert machines.logs() == ["epoch 0 a", "epoch 1 b", "epoch 2 a"]


@pytest.mark.parametrize(
    "told", [Earlier(2, 0), Earlier(2, 0, num_restarts=1)], ids=["retried", "after a kill"]
)
def test_attempts_that_the_server_has_not_heard_of_keep_their_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Earlier
) -> None:
    machines = Machines(tmp_path, monkeypatch)
    machines.train_on("a", Earlier())
    machines.train_on("a", Earlier(1, 1))

    number = machines.train_on("b", told)

    assert number == 2
    assert machines.logs() == ["epoch 0 a", "epoch 1 a", "epoch 2 b"]


def test_on_the_same_machine_outputs_that_are_not_saved_yet_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = Machines(tmp_path, monkeypatch)
    machines.train_on("a", Earlier())
    (Workspace.of_run(RUN_ID).output_dir("train_url") / "epoch-x").write_text("unsaved")

    machines.train_on("a", Earlier(num_processes=2, num_attempts=1))

    assert machines.finish() == ["epoch-0", "epoch-1", "epoch-x"]


def test_a_machine_that_begins_anew_takes_away_nothing_that_another_one_has_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = Machines(tmp_path, monkeypatch, checkpoints=None)
    machines.train_on("a", Earlier(), writing("epoch-0"))
    (machines.outputs / "epoch-x").write_text("unsaved")
    machines.train_on("b", Earlier(num_processes=1, num_attempts=1), writing("epoch-1"))

    machines.train_on("a", Earlier(num_processes=2, num_attempts=2), writing())

    assert list(machines.outputs.iterdir()) == []
    assert machines.finish() == ["epoch-0", "epoch-1", "epoch-x"]


def test_a_machine_goes_on_with_its_own_outputs_if_another_one_has_saved_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = Machines(tmp_path, monkeypatch)
    machines.train_on("a", Earlier())
    (machines.outputs / "epoch-x").write_text("unsaved")
    machines.train_on("b", Earlier(num_processes=1, num_attempts=1), writing("epoch-0", "epoch-b"))

    machines.train_on("a", Earlier(num_processes=2, num_attempts=2))

    own = ["epoch-0", "epoch-1", "epoch-x"]
    assert sorted(file.name for file in machines.outputs.iterdir()) == own
    assert machines.finish() == sorted([*own, "epoch-b"])
    assert (tmp_path / "out" / "epoch-0").read_text() == "a"


def test_a_log_store_that_is_away_costs_the_number_of_the_attempt_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no-folder").write_text("")
    machines = Machines(tmp_path, monkeypatch, logs={"url": str(tmp_path / "no-folder")})

    assert machines.train_on("b", Earlier(num_processes=4, num_attempts=3)) == 3
