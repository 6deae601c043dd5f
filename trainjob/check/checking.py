"""Everything that can be known before a run starts, all problems at once.

The command line asks before it creates anything, the flow asks again at its start. Nothing is
changed: what has to be fetched to be examined goes to a temporary folder that is removed, and the
probe of an output is deleted again.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainjob.check.engine import engine_problems
from trainjob.check.machine import machine_problems, shared_memory_problems, space_problems
from trainjob.check.script import Examined, examine_script
from trainjob.code_limits import data_problems, limits_of_machine
from trainjob.cost import cost_text, price_problems
from trainjob.env_rules import open_secret_problems
from trainjob.errors import Problem, SourceError
from trainjob.job import TrainingJob
from trainjob.launch.environment import search_path
from trainjob.launch.preflight import launch_problems
from trainjob.profiles import PROFILES
from trainjob.source import code_problems
from trainjob.storage.deadline import Deadline, ending_at
from trainjob.storage.listing import Listing
from trainjob.storage.probe import (
    checkpoint_problems,
    input_problems,
    log_problems,
    output_problems,
)
from trainjob.storage.settings import StoreSettings
from trainjob.values import counted, format_size
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
        code: How much code a run takes along, as a line for a person; None: it could not be had.
    """

    problems: tuple[Problem, ...]
    not_checked: tuple[str, ...]
    cost: str | None = None
    code: str | None = None

    @property
    def errors(self) -> list[Problem]:
        """What keeps the job from running."""
        return [problem for problem in self.problems if problem.level == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """What may not be meant so."""
        return [problem for problem in self.problems if problem.level == "warning"]


def check_job(
    job: TrainingJob, settings: StoreSettings | None, of_server: Iterable[Problem] = ()
) -> Findings:
    """Find everything that would keep `job` from running on this machine, in the job's order.

    Args:
        job: A job whose paths are absolute (`TrainingJob.resolved`).
        settings: How to reach the stores of its ``s3://`` urls; None: that could not be found out,
            so that these are not checked.
        of_server: What the caller has found that only the server of Prefect knows.
    """
    sizes: list[str] = []
    checks: list[Callable[[], Examined]] = [
        _listed(partial(open_secret_problems, job.env, "warning")),
        partial(_code, job, settings, sizes.append),
        partial(engine_problems, job),
        *(_of_place(*place, settings) for place in _places(job, settings)),
        partial(space_problems, job, settings),
        _listed(partial(launch_problems, job)),
        _listed(partial(price_problems, job)),
        _listed(partial(machine_problems, job)),
        _listed(_workspace_problems),
    ]
    examined = _examined(checks)
    problems = [*of_server, *(problem for part in examined for problem in part.problems)]
    not_checked = [line for part in examined for line in part.not_checked]
    code = sizes[0] if sizes else None
    return Findings(tuple(problems), (*not_checked, *_NEVER_CHECKED), cost_text(job), code)


def _examined(checks: Iterable[Callable[[], Examined]]) -> list[Examined]:
    """Do all checks at once, and none any longer when a person has stopped waiting for them."""
    deadline = Deadline()

    def in_time(check: Callable[[], Examined]) -> Examined:
        with ending_at(deadline):
            return check()

    with ThreadPoolExecutor(max_workers=8) as threads:
        try:
            return list(threads.map(in_time, checks))
        except BaseException:
            # A process cannot end before its threads, and a store that is silent has minutes.
            deadline.set(0)
            raise


def _listed(check: Callable[[], list[Problem]]) -> Callable[[], Examined]:
    return lambda: Examined(check())


def _of_place(
    field: str, url: str, check: Callable[[], list[Problem]], settings: StoreSettings | None
) -> Callable[[], Examined]:
    return _unreachable(field) if _is_away(url, settings) else _listed(check)


def _is_away(url: str, settings: StoreSettings | None) -> bool:
    return settings is None and url.startswith("s3://")


def _unreachable(field: str) -> Callable[[], Examined]:
    return lambda: Examined([], [f"{field}: the store could not be had"])


def _code(
    job: TrainingJob, settings: StoreSettings | None, tell: Callable[[str], object]
) -> Examined:
    """Examine the code, and the script in it as far as there is one."""
    if _is_away(job.algorithm.code.url, settings):
        return _unreachable("algorithm.code.url, and the script in it")()
    examined: list[Examined] = []

    def examine(folder: Path) -> list[Problem]:
        examined.append(examine_script(job, folder))
        return [*examined[0].problems, *shared_memory_problems(job, folder)]

    try:
        limits = limits_of_machine(PROFILES[job.profile].code_limits)
    except SourceError as error:
        return Examined([error.args[0]])
    path = job.env.get("PATH", search_path(os.environ))
    listed: list[Listing] = []
    problems = code_problems(
        *(job.algorithm, settings, path, examine, limits), measure=listed.append
    )
    for code in listed:
        tell(_size_of(code))
        problems += data_problems(code)
    if examined:
        return Examined(problems, examined[0].not_checked)
    return Examined(problems, ["the script, its arguments and imports: it could not be read"])


def _size_of(code: Listing) -> str:
    return f"{counted(len(code.files), 'file')}, {format_size(code.size_bytes)}"


def _places(
    job: TrainingJob, settings: StoreSettings | None
) -> Iterator[tuple[str, str, Callable[[], list[Problem]]]]:
    """Yield the places that the job reads and writes: field, url, and the check of it."""
    for i, channel in enumerate(job.inputs):
        field, url = f"inputs[{i}].url", channel.url
        yield field, url, partial(input_problems, field, url, settings)
    for i, output in enumerate(job.outputs):
        field, url = f"outputs[{i}].url", output.url
        yield field, url, partial(output_problems, field, url, settings)
    if job.checkpoints:
        field, url = "checkpoints.url", job.checkpoints.url
        yield field, url, partial(checkpoint_problems, field, url, settings, job=job.name)
    if job.logs.url is not None:
        yield "logs.url", job.logs.url, partial(log_problems, "logs.url", job.logs.url, settings)


def _workspace_problems() -> list[Problem]:
    folder = workspaces_dir()
    place = next(p for p in (folder, *folder.parents) if p.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return []
    found = f"{str(place)!r}, which is not a folder that can be written"
    do = "set TRAINJOB_WORKDIR to a folder with free space"
    return [Problem("TRAINJOB_WORKDIR", f"the folder {str(folder)!r}", found, do)]
