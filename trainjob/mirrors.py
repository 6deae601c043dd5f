"""What of a run is kept in stores while it trains: its checkpoints, logs and outputs.

Whoever saves for a run makes the same mirrors from the same job, be it the process that trains or
the one that finishes a run which was stopped.
"""

from collections.abc import Collection
from pathlib import Path

from trainjob.events import Saved
from trainjob.job import TrainingJob, url_of_run
from trainjob.storage.checkpoint_mirror import CheckpointMirror
from trainjob.storage.log_mirror import LogMirror
from trainjob.storage.output_mirror import OutputMirror
from trainjob.storage.script_access import secrets_of
from trainjob.storage.settings import StoreSettings
from trainjob.storage.sync import Mirror, SyncReport
from trainjob.workspace import Workspace

FLUSH_S = 900.0
"""How long the last copies of checkpoints and logs may take, a store that is away included."""


def mirrors_of(
    job: TrainingJob,
    workspace: Workspace,
    settings: StoreSettings,
    run_id: str,
    secrets: Collection[str] = (),
) -> list[Mirror]:
    """Return the mirrors of a run, that of which least may be lost first.

    Args:
        job: The job of the run.
        workspace: Its folders.
        settings: How to reach their stores.
        run_id: The run.
        secrets: What the ranks know beside the settings, and nobody may find in logs.
    """
    mirrors: list[Mirror] = []
    if checkpoints := _checkpoint_mirror(job, workspace, settings, run_id):
        mirrors.append(checkpoints)
    if job.logs.url is not None:
        url = url_of_run(job.logs.url, run_id)
        mirrors.append(
            LogMirror(
                workspace.logs,
                url,
                settings,
                run_id=run_id,
                secrets=secrets_of(settings, secrets),
                journal=workspace.journal("logs"),
            )
        )
    mirrors += (
        OutputMirror(
            workspace.output_dir(channel.name),
            url_of_run(channel.url, run_id),
            settings,
            run_id=run_id,
            label=channel.name,
            journal=output_journal(workspace, channel.name),
        )
        for channel in job.outputs
    )
    return mirrors


def unsent_checkpoints(job: TrainingJob, workspace: Workspace, run_id: str) -> tuple[str, ...]:
    """Return the checkpoints of a run that are not known to be in their store; none without one.

    The journal tells it, so that no store is asked: also of what an earlier process has sent.

    Args:
        job: The job of the run.
        workspace: Its folders; nobody writes checkpoints any more.
        run_id: The run.

    Raises:
        StoreError: If the folder cannot be read.
    """
    mirror = _checkpoint_mirror(job, workspace, None, run_id)
    if mirror is None:
        return ()
    mirror.look()
    return mirror.known().missing


def _checkpoint_mirror(
    job: TrainingJob, workspace: Workspace, settings: StoreSettings | None, run_id: str
) -> CheckpointMirror | None:
    if job.checkpoints is None:
        return None
    return CheckpointMirror(
        workspace.checkpoints,
        url_of_run(job.checkpoints.url, run_id),
        settings,
        job=job.name,
        run_id=run_id,
        journal=checkpoint_journal(workspace),
    )


def saved_of(report: SyncReport) -> Saved:
    """Return what a mirror came to as an event."""
    why = (str(report.error),) if report.error else ()
    return Saved(
        report.label, report.url, report.num_files, report.size_bytes, why + report.missing
    )


def checkpoint_journal(workspace: Workspace) -> Path:
    """Return the file that notes which checkpoints were sent."""
    return workspace.journal("checkpoints")


def output_journal(workspace: Workspace, name: str) -> Path:
    """Return the file that notes what of an output was sent."""
    return workspace.journal(f"output-{name}")
