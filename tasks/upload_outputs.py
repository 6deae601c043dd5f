"""Bring every output channel into its store, verified, with a receipt."""

from typing import Any

from blocks.object_store import load_settings
from tasks.live_copies import live_copies
from tasks.stage import stage
from trainjob.job import TrainingJob
from trainjob.report import OutputReport
from trainjob.saving import add_metrics, upload_all
from trainjob.storage.receipt import OutputState
from trainjob.workspace import Workspace


def _summary(outputs: list[OutputReport]) -> str:
    if not outputs:
        return "no outputs"
    return "; ".join(map(str, outputs))


# The facts are told by what ran in this pass. A pass after the result was complete has less to say,
# and must not upload again what may be half removed from this machine by then.
@stage(_summary, not_in_key="facts")
def upload_outputs(
    job: TrainingJob, run_id: str, facts: dict[str, Any], state: OutputState
) -> list[OutputReport]:
    """Upload the outputs of the run, prove them, and mark them as results once all are there.

    Args:
        job: The job of the run.
        run_id: Which run's outputs; the receipt names it.
        facts: What the receipt says of the run beside its files.
        state: How the training ended.
    """
    settings = load_settings(job.store)
    add_metrics(job, Workspace.of_run(run_id))
    with live_copies(job.name, run_id, "uploading"):
        return upload_all(job, run_id, settings, facts, state)
