"""What the ranks of a job in a sandbox see of their run, beside the folders of its profile.

A function of the job and its workspace as it was staged; `trainjob.launch.sandbox` shows it, with
programs and devices of the machine.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from trainjob.job import TrainingJob
from trainjob.launch.launch import Mount
from trainjob.workspace import Workspace


def own_view(job: TrainingJob, workspace: Workspace, attempt: int) -> tuple[Mount, ...]:
    """Return what the ranks see of the workspace, at its own paths; nothing without a sandbox.

    Code and inputs are to read only, but for a copy that the job asked for; everything that is
    written is a folder of this run.
    """
    if not job.sandbox:
        return ()
    written = [workspace.checkpoints, workspace.attempt_logs(attempt)]
    written += [workspace.output_dir(channel.name) for channel in job.outputs]
    return (
        *_private(workspace),
        Mount(str(workspace.code), workspace.code, is_read_only=True),
        Mount(str(workspace.params_file), workspace.params_file, is_read_only=True),
        *_inputs(job, workspace),
        *(Mount(str(path), path) for path in written),
    )


def _private(workspace: Workspace) -> Iterator[Mount]:
    """Yield places of the machine of which the run has its own."""
    yield Mount("/tmp", workspace.private / "tmp")  # noqa: S108 - that of the sandbox
    home = os.environ.get("HOME", "")
    if home.startswith("/") and home.strip("/"):
        yield Mount(home.rstrip("/"), workspace.private / "home")


def _inputs(job: TrainingJob, workspace: Workspace) -> Iterator[Mount]:
    for channel in job.inputs:
        folder = workspace.input_dir(channel.name)
        if channel.is_streamed:
            continue
        yield Mount(str(folder), folder, is_read_only=channel.mode == "link")
        # One file of this machine is staged as a link to it.
        file = Path(channel.url.removeprefix("file://"))
        link = folder / file.name
        if link.is_symlink() and link.readlink() == file and file.exists():
            yield Mount(str(file), file, is_read_only=True)
