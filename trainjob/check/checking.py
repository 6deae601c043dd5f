"""Everything that can be known before a run starts, all problems at once.

The command line asks before it creates anything, the flow asks again at its start. Nothing is
changed: what has to be fetched to be examined goes to a temporary folder that is removed, and the
probe of an output is deleted again.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainjob.check.engine import engine_problems
from trainjob.check.machine import machine_problems, shared_memory_problems, space_problems
from trainjob.check.script import Examined, examine_script
from trainjob.cost import cost_text
from trainjob.errors import Problem
from trainjob.job import InputChannel, TrainingJob
from trainjob.launch.environment import search_path
from trainjob.launch.preflight import launch_problems
from trainjob.profiles import PROFILES
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

_NEVER_CHECKED = (
    "whether the training fits the memory",
    "the content of the inputs",
)


@dataclass(frozen=True, slots=True)
class Findings:
    """What a check found.

    Attributes:
        problems: Errors and warnings, in the order of the job.
        not_checked: What a check that finds nothing still does not promise.
        cost: What a run costs, as a line for a person; None: the job has no flavor.
    """

    problems: tuple[Problem, ...]
    not_checked: tuple[str, ...]
    cost: str | None = None

    @property
    def errors(self) -> list[Problem]:
        """What keeps the job from running."""
        return [problem for problem in self.problems if problem.level == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """What may not be meant so."""
        return [problem for problem in self.problems if problem.level == "warning"]


def check_job(job: TrainingJob, settings: StoreSettings) -> Findings:
    """Find everything that would keep `job` from running on this machine, in the job's order.

    Args:
        job: A job whose paths are absolute (`TrainingJob.resolved`).
        settings: How to reach the stores of its ``s3://`` urls.
    """
    checks: list[Callable[[], Examined]] = [
        partial(_code, job, settings),
        partial(engine_problems, job),
        *(_listed(check) for check in _places(job, settings)),
        partial(space_problems, job, settings),
        _listed(partial(launch_problems, job)),
        _listed(partial(machine_problems, job)),
        _listed(_workspace_problems),
    ]
    with ThreadPoolExecutor(max_workers=8) as threads:
        examined = list(threads.map(lambda check: check(), checks))
    problems = [problem for part in examined for problem in part.problems]
    not_checked = [line for part in examined for line in part.not_checked]
    return Findings(tuple(problems), (*not_checked, *_NEVER_CHECKED), cost_text(job))


def _listed(check: Callable[[], list[Problem]]) -> Callable[[], Examined]:
    return lambda: Examined(check())


def _code(job: TrainingJob, settings: StoreSettings) -> Examined:
    """Examine the code, and the script in it as far as there is one."""
    examined: list[Examined] = []

    def examine(folder: Path) -> list[Problem]:
        examined.append(examine_script(job, folder))
        return [*examined[0].problems, *shared_memory_problems(job, folder)]

    path = job.env.get("PATH", search_path(os.environ))
    limits = PROFILES[job.profile].code_limits
    problems = code_problems(job.algorithm, settings, path, examine, limits)
    if examined:
        return Examined(problems, examined[0].not_checked)
    return Examined(problems, ["the script, its arguments and imports: it could not be read"])


def _places(job: TrainingJob, settings: StoreSettings) -> list[Callable[[], list[Problem]]]:
    """Return the checks of the places that the job reads and writes."""
    checks: list[Callable[[], list[Problem]]] = [
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
    ]
    if job.checkpoints:
        url = job.checkpoints.url
        checks.append(partial(checkpoint_problems, "checkpoints.url", url, settings, job=job.name))
    if job.logs.url is not None:
        checks.append(partial(log_problems, "logs.url", job.logs.url, settings))
    return checks


def _may_be_file(channel: InputChannel) -> bool:
    """Tell whether the channel may be a single file; of others the folder has to be given."""
    is_unpacked = channel.unpack != "never" and is_dataset_archive(channel.url)
    return channel.is_streamed or is_unpacked


def _workspace_problems() -> list[Problem]:
    folder = workspaces_dir()
    place = next(p for p in (folder, *folder.parents) if p.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return []
    found = f"{str(place)!r}, which is not a folder that can be written"
    do = "set TRAINJOB_WORKDIR to a folder with free space"
    return [Problem("TRAINJOB_WORKDIR", f"the folder {str(folder)!r}", found, do)]
