"""Copy every input channel from its store into the workspace, verified."""

from dataclasses import dataclass

from blocks.object_store import load_settings
from tasks.stage import stage
from trainjob.job import TrainingJob
from trainjob.storage.stage import stage_tree
from trainjob.values import counted, format_size
from trainjob.workspace import Workspace


@dataclass(frozen=True, slots=True)
class StagedInput:
    """An input channel as it was staged; `fingerprint` is that of its files."""

    name: str
    url: str
    num_files: int
    size_bytes: int
    fingerprint: str


def _summary(inputs: list[StagedInput]) -> str:
    if not inputs:
        return "no inputs"
    return ", ".join(
        f"{i.name}: {counted(i.num_files, 'file')}, {format_size(i.size_bytes)}" for i in inputs
    )


@stage(_summary)
def stage_inputs(job: TrainingJob, run_id: str) -> list[StagedInput]:
    """Copy the inputs of `job` into the workspace of the run, exactly and verified."""
    settings = load_settings(job.store)
    workspace = Workspace.of_run(run_id)
    staged = []
    for channel in job.inputs:
        target = workspace.input_dir(channel.name)
        tree = stage_tree(channel.url, target, settings, label=channel.name)
        staged.append(
            StagedInput(channel.name, tree.url, tree.num_files, tree.size_bytes, tree.fingerprint)
        )
    return staged
