"""Whether the engine that an algorithm was written for is what this Python has."""

import shlex
from collections.abc import Iterator

from trainjob.check.script import Examined, runs_this_python
from trainjob.engines import Engine, differences, installed
from trainjob.errors import Level, Problem
from trainjob.job import TrainingJob
from trainjob.plan import program_of
from trainjob.workspace import Workspace

_FIELD = "algorithm.engine"


def engine_problems(job: TrainingJob) -> Examined:
    """Return where the engine of the job is not what is here.

    A framework that is not installed is an error: nothing of what the algorithm was written for is
    there. Another version is a warning, since many scripts work with several.
    """
    if job.algorithm.engine is None:
        return Examined()
    engine, asked = Engine.parse(job.algorithm.engine), repr(job.algorithm.engine)
    problems = list(_device_problems(engine, asked, job))
    if why := _why_unknown(engine, job):
        return Examined(problems, [f"whether the engine {asked} is there: {why}"])
    return Examined([*_framework_problems(engine, asked), *problems])


def _why_unknown(engine: Engine, job: TrainingJob) -> str | None:
    """Say why what is installed here may not be what the ranks have; None: it is."""
    words = program_of(job, Workspace.of_run("RUN_ID")).argv
    if not runs_this_python(job, words):
        return f"`{shlex.join(words[:2])}` may have a Python of its own"
    if any(name.startswith("PYTHON") for name in job.env):
        return "env says where Python looks"
    is_missing = engine.framework is not None and installed(engine.framework) is None
    return "requirements.txt may bring it" if is_missing and job.environment.requirements else None


def _framework_problems(engine: Engine, asked: str) -> Iterator[Problem]:
    if engine.framework is None:
        return
    found = installed(engine.framework)
    if found is None:
        do = f"install {engine.framework} on this machine, or run the job where it is"
        yield _problem(asked, f"no {engine.framework} in this Python", do, "missing", "error")
    elif others := differences(engine, found):
        do = "try it here, or run the job on a machine that has this engine"
        yield _problem(asked, ", ".join(others), do, "differs", "warning")


def _device_problems(engine: Engine, asked: str, job: TrainingJob) -> Iterator[Problem]:
    device = job.resources.device
    if engine.device not in (None, device) and device != "cpu":  # most of them compute on cpu, too
        found, do = f"device {device}", "choose an engine for this device, or the other device"
        yield _problem(asked, found, do, "device", "warning")


def _problem(asked: str, found: str, do: str, rule: str, level: Level) -> Problem:
    return Problem(_FIELD, f"the engine {asked}", found, do, id=f"engine-{rule}", level=level)
