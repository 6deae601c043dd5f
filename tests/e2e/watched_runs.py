"""Runs of the script that fails as it is told, and what becomes of them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import yaml
from prefect import State
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.training_job import training_job
from tasks.artifacts import artifact_key
from tests.jobs import make_job
from tests.processes import marked_processes
from trainjob.checkpoint_folder import complete_checkpoints
from trainjob.events import AttemptEnded, Event, RunEnded, listening
from trainjob.failure import Failure
from trainjob.job import TrainingJob
from trainjob.launch.failure import Explained
from trainjob.report import RunReport
from trainjob.storage.checkpoint_index import INDEXES, CheckpointIndex

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("fault_scripts.py")
LAUNCHERS = ("mpi", "torchrun")


def watched_job(folder: Path, hyperparameters: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a job on two ranks whose checkpoints and outputs go to folders below `folder`."""
    job: dict[str, Any] = {
        "name": "watched",
        "checkpoints": {"url": str(folder / "checkpoints")},
        "hyperparameters": hyperparameters,
        "resources": {"processes_per_node": 2},
        "launcher": "mpi",
    }
    return make_job(folder, SCRIPT.read_text(), **(job | changes))


@dataclass(frozen=True)
class Ended:
    """What became of a run."""

    state: State[Any]
    report: RunReport
    attempts: list[AttemptEnded]
    processes_left: dict[int, str]
    page: str

    @property
    def failure(self) -> Failure:
        """What is known of the first attempt's failure."""
        error = self.attempts[0].error
        assert isinstance(error, Explained), error
        return error.failure


def run(job: dict[str, Any], act: Callable[[Event], None] = lambda _: None) -> Ended:
    """Run a job in this thread to its end, and let `act` do something at its events."""
    events: list[Event] = []

    def keep(event: Event) -> None:
        if isinstance(event, AttemptEnded | RunEnded):
            events.append(event)

    # As the deployments have it: many runs begin at once, and SQLite is busy.
    patience = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 9})
    with patience, listening(keep), listening(act):
        state = cast(State[Any], training_job(TrainingJob.parse(job), return_state=True))
    [ended] = [event for event in events if isinstance(event, RunEnded)]
    return Ended(
        state=state,
        report=ended.report,
        attempts=[event for event in events if isinstance(event, AttemptEnded)],
        processes_left=marked_processes(ended.report.run_id),
        page=page_of(ended.report.run_id, job["name"]),
    )


@contextmanager
def started(
    folder: Path, job: dict[str, Any], env: dict[str, str]
) -> "Iterator[subprocess.Popen[str]]":
    """Run ``python -m flows run --json`` on a job; it has ended when the block has."""
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    with subprocess.Popen(
        [sys.executable, "-m", "flows", "run", "--json", str(file)],
        cwd=ROOT,
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def page_of(run_id: str, job_name: str) -> str:
    """Return the report that a run has left in Prefect."""
    of_run = ArtifactFilter(
        key=ArtifactFilterKey(any_=[artifact_key(job_name)]),
        flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(run_id)]),
    )
    with get_client(sync_client=True) as client:
        [page] = client.read_artifacts(artifact_filter=of_run)
    return str(page.data)


def stored_steps(folder: Path) -> list[int]:
    """Return the steps that the index of a store names; each of them is there and complete.

    What the index does not name means nothing: it is being sent, or was when its run was killed.
    """
    before, text = None, _newest_index(folder)
    while text is not None and text != before:  # somebody may write while we look
        complete = {saved.path.name: saved.marker for saved in complete_checkpoints(folder)[0]}
        before, text = text, _newest_index(folder)
    if text is None:
        return []
    promised = {file.path for file in CheckpointIndex.model_validate_json(text).files}
    steps = sorted(path.removesuffix("/COMPLETE") for path in promised if "COMPLETE" in path)
    for step in steps:
        assert {f"{step}/{name}" for name in complete[step].files} <= promised
    return [complete[step].step for step in steps]


def _newest_index(folder: Path) -> str | None:
    """Return the index of the run that took the folder over last."""
    while files := sorted((folder / INDEXES).glob("*.json")):
        with suppress(FileNotFoundError):  # another run deletes it as it takes over
            return files[-1].read_text()
    return None


def local_steps(runs: Path, run_id: str = "*") -> list[int]:
    """Return the complete steps on this machine of a run, or of all runs, below `runs`."""
    return [
        saved.marker.step
        for folder in runs.glob(f"{run_id}/checkpoints")
        for saved in complete_checkpoints(folder)[0]
    ]
