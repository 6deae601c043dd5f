"""Bring every input channel into the workspace, verified, through the cache of the machine."""

from blocks.object_store import load_settings
from tasks.live_copies import live_copies
from tasks.stage import stage
from trainjob.inputs import StagedInput, stage_channels
from trainjob.job import TrainingJob
from trainjob.workspace import Workspace


def _summary(inputs: list[StagedInput]) -> str:
    return "; ".join(map(str, inputs)) or "no inputs"


@stage(_summary)
def stage_inputs(job: TrainingJob, run_id: str) -> list[StagedInput]:
    """Bring the inputs of `job` into the workspace of the run, exactly and verified."""
    settings = load_settings(job.store)
    with live_copies(job.name, run_id, "staging"):
        return stage_channels(job, Workspace.of_run(run_id), settings)
