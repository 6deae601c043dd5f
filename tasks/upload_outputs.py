"""Bring every output channel into its store, verified, with a receipt."""

from typing import Any

from blocks.object_store import load_settings
from tasks.stage import stage
from trainjob.job import TrainingJob, url_of_run
from trainjob.mirrors import output_journal
from trainjob.report import OutputReport
from trainjob.saving import add_metrics
from trainjob.storage.receipt import OutputState
from trainjob.storage.upload import upload_tree
from trainjob.values import counted, format_size
from trainjob.workspace import Workspace


def _summary(outputs: list[OutputReport]) -> str:
    if not outputs:
        return "no outputs"
    return ", ".join(
        f"{o.name}: {counted(o.num_files, 'file')}, {format_size(o.size_bytes)}, verified"
        for o in outputs
    )


@stage(_summary)
def upload_outputs(
    job: TrainingJob, run_id: str, facts: dict[str, Any], state: OutputState
) -> list[OutputReport]:
    """Upload the outputs of the run, read them back, and write a receipt beside them.

    Args:
        job: The job of the run.
        run_id: Which run's outputs; the receipt names it.
        facts: What the receipt says of the run beside its files.
        state: How the training ended.
    """
    settings = load_settings(job.store)
    workspace = Workspace.of_run(run_id)
    add_metrics(job, workspace)
    uploaded = []
    for channel in job.outputs:
        url = url_of_run(channel.url, run_id)
        receipt = upload_tree(
            workspace.output_dir(channel.name),
            url,
            settings,
            run_id=run_id,
            facts=facts,
            label=channel.name,
            state=state,
            journal=output_journal(workspace, channel.name),
        )
        sizes = [file.size_bytes for file in receipt.files]
        uploaded.append(OutputReport(channel.name, url, len(sizes), sum(sizes)))
    return uploaded
