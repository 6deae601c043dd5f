"""The script of a job, examined without running it.

Joins the scans of this package and says what none of them could see. Called with the code as it was
fetched for the check.
"""

import posixpath
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from trainjob.algorithm import CommandAlgorithm, ScriptAlgorithm
from trainjob.check.arguments import Given, argument_problems
from trainjob.check.certain_path import certain_nodes
from trainjob.check.declared_arguments import Declared, declared_arguments
from trainjob.check.namespace_reads import namespace_problems
from trainjob.check.requirements import requirement_problems
from trainjob.check.script_habits import habit_problems
from trainjob.check.script_imports import import_problems
from trainjob.check.script_modules import UnreadableScript, read_script
from trainjob.errors import Problem
from trainjob.job import TrainingJob
from trainjob.plan import program_of
from trainjob.workspace import Workspace

_PYTHON = re.compile(r"python[0-9.]*")
_HARMLESS_OPTIONS = {"-u", "-B", "-O", "-OO"}


@dataclass(slots=True)
class Examined:
    """What was found in code, and what could not be examined.

    Attributes:
        problems: In the order of the job.
        not_checked: Each as a line for a person.
    """

    problems: list[Problem] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)


def examine_script(job: TrainingJob, code_dir: Path) -> Examined:
    """Examine what the job starts.

    Args:
        job: The job.
        code_dir: Its code, in which there is what it starts.
    """
    found = Examined()
    unmet, unknown = requirement_problems(code_dir)
    found.not_checked += [f"the requirement {line}" for line in unknown]
    words = list(program_of(job, Workspace.of_run("RUN_ID")).argv)
    script = _script_of(job, words)
    if script is None or not script.endswith(".py") or not (code_dir / script).is_file():
        started = shlex.join(words[:2])
        found.not_checked.append(f"arguments and imports of what `{started}` starts")
    else:
        _examine(job, code_dir, script, words[words.index(script) + 1 :], found)
    found.problems += unmet
    return found


def _script_of(job: TrainingJob, words: list[str]) -> str | None:
    """Return the Python script that is started, if the job names one."""
    if isinstance(job.algorithm, ScriptAlgorithm):
        return words[0]
    if not _PYTHON.fullmatch(posixpath.basename(words[0])) or "PATH" in job.env:
        return None
    rest = [word for word in words[1:] if word not in _HARMLESS_OPTIONS]
    return rest[0] if rest else None


def _examine(
    job: TrainingJob, code_dir: Path, script: str, words: list[str], found: Examined
) -> None:
    try:
        read = read_script(code_dir, script)
    except UnreadableScript as error:
        asked, do = f"the script {error.path!r}", "correct it, or name another file"
        problem = Problem("algorithm", asked, error.found, do, id="script-syntax")
        found.problems.append(problem)
        return
    modules = read.modules
    declared, certain = declared_arguments(read), certain_nodes(modules[0])
    written: list[str] = []
    if isinstance(job.algorithm, CommandAlgorithm):
        fixed = shlex.split(job.algorithm.command)
        written = fixed[fixed.index(script) + 1 :]
    given = _given(job, words[len(written) :])
    if declared.parse_calls and declared.num_parsers:
        found.problems += argument_problems(declared, given, certain, written)
        found.problems += namespace_problems(modules, declared, certain)
    found.not_checked += _unseen(declared)
    found.problems += habit_problems(job, modules, declared, given)
    if "PYTHONPATH" not in job.env:
        found.problems += import_problems(modules, code_dir, script)


def _unseen(declared: Declared) -> list[str]:
    if not declared.num_parsers or not declared.parse_calls:
        return ["which arguments the script accepts: it does not parse them with argparse"]
    if declared.doubts:
        return [f"whether the script declares all arguments: {declared.doubts[0]}"]
    return []


def _given(job: TrainingJob, words: list[str]) -> dict[str, Given]:
    """Return the words that the job gives the script under each name, as they are on its line."""
    fields: dict[str, tuple[str, object]] = {}
    for i, channel in enumerate(job.inputs):
        fields[channel.name] = (f"inputs[{i}].name", channel.url)
    for i, output in enumerate(job.outputs):
        fields[output.name] = (f"outputs[{i}].name", output.url)
    if job.checkpoints:
        fields[job.checkpoints.name] = ("checkpoints.name", job.checkpoints.url)
    for name, value in job.given_hyperparameters.items():
        fields[name] = (f"hyperparameters.{name}", value)
    groups: dict[str, list[str]] = {}
    current: list[str] = []
    for word in words:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--"):
            known = name if name in fields else name.removeprefix("no-")
            current = groups.setdefault(known if known in fields else name, [])
        current.append(word)
    return {
        name: Given(*(fields[name][0], tuple(group), fields[name][1]))
        for name, group in groups.items()
        if name in fields
    }
