"""Everything that can be known before a run starts, all problems at once.

The command line asks before it creates anything, the flow asks again at its start. Nothing is
changed: what has to be fetched to be examined goes to a temporary folder that is removed, and the
probe of an output is deleted again.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from trainjob.errors import Problem
from trainjob.job import InputChannel, TrainingJob
from trainjob.launch.environment import search_path
from trainjob.launch.preflight import launch_problems
from trainjob.source import code_problems
from trainjob.storage.probe import (
    checkpoint_problems,
    input_problems,
    log_problems,
    output_problems,
)
from trainjob.storage.settings import StoreSettings
from trainjob.storage.unpack import is_dataset_archive
from trainjob.workspace import workspaces_dir

NOT_CHECKED = (
    "whether the script accepts these arguments and its imports are installed",
    "whether the inputs fit the free disk and the training fits the memory",
    "the content of the inputs",
)
"""What a check that finds nothing still does not promise."""


def job_problems(job: TrainingJob, settings: StoreSettings) -> list[Problem]:
    """Return everything that would keep `job` from running on this machine, in the job's order.

    Args:
        job: A job whose paths are absolute (`TrainingJob.resolved`).
        settings: How to reach the stores of its ``s3://`` urls.
    """
    checks: list[Callable[[], list[Problem]]] = [
        partial(
            code_problems,
            job.algorithm,
            settings,
            search_path=job.env.get("PATH", search_path(os.environ)),
        ),
        *(
            partial(
                input_problems,
                f"inputs[{i}].url",
                channel.url,
                settings,
                may_be_file=_may_be_file(channel),
            )
            for i, channel in enumerate(job.inputs)
        ),
        *(
            partial(output_problems, f"outputs[{i}].url", channel.url, settings)
            for i, channel in enumerate(job.outputs)
        ),
        *_kept_places(job, settings),
        partial(launch_problems, job),
        _workspace_problems,
    ]
    with ThreadPoolExecutor(max_workers=8) as threads:
        found = threads.map(lambda check: check(), checks)
        return [problem for problems in found for problem in problems]


def _may_be_file(channel: InputChannel) -> bool:
    """Tell whether the channel may be a single file; of others the folder has to be given."""
    is_unpacked = channel.unpack != "never" and is_dataset_archive(channel.url)
    return channel.is_streamed or is_unpacked


def _kept_places(job: TrainingJob, settings: StoreSettings) -> list[Callable[[], list[Problem]]]:
    """Return the checks of the places where checkpoints and logs are kept."""
    checks: list[Callable[[], list[Problem]]] = []
    if job.checkpoints:
        url = job.checkpoints.url
        checks.append(partial(checkpoint_problems, "checkpoints.url", url, settings, job=job.name))
    if job.logs.url is not None:
        checks.append(partial(log_problems, "logs.url", job.logs.url, settings))
    return checks


def _workspace_problems() -> list[Problem]:
    folder = workspaces_dir()
    place = next(p for p in (folder, *folder.parents) if p.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return []
    found = f"{str(place)!r}, which is not a folder that can be written"
    do = "set TRAINJOB_WORKDIR to a folder with free space"
    return [Problem("TRAINJOB_WORKDIR", f"the folder {_shown(folder)}", found, do)]


def _shown(folder: Path) -> str:
    return repr(str(folder))
