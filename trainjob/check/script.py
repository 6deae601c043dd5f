"""The script of a job, examined without running it.

Joins the scans of this package and says what none of them could see. Called with the code as it was
fetched for the check.
"""

import ast
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
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
from trainjob.check.script_modules import Module, UnreadableScript, imports_of, is_file, read_script
from trainjob.errors import Problem
from trainjob.job import TrainingJob
from trainjob.launch.environment import search_path
from trainjob.plan import program_of
from trainjob.workspace import Workspace

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
    are_installed = job.environment.requirements
    unmet, unknown = requirement_problems(code_dir, are_installed_first=are_installed)
    found.not_checked += unknown
    words = list(program_of(job, Workspace.of_run("RUN_ID")).argv)
    script = _script_of(job, words)
    if script is None or not script.endswith(".py") or not is_file(code_dir / script):
        started = shlex.join(words[:2])
        found.not_checked.append(f"arguments and imports of what `{started}` starts")
    else:
        try:
            _examine(job, code_dir, script, words[words.index(script) + 1 :], found)
        except RecursionError:
            found.not_checked.append(f"the rest of {script!r}: it is nested too deeply")
    found.problems += unmet
    return found


def _script_of(job: TrainingJob, words: list[str]) -> str | None:
    """Return the Python script that is started, if the job names one."""
    if isinstance(job.algorithm, ScriptAlgorithm):
        return words[0]
    if not runs_this_python(job, words):
        return None
    rest = [word for word in words[1:] if word not in _HARMLESS_OPTIONS]
    return rest[0] if rest else None


def runs_this_python(job: TrainingJob, words: Sequence[str]) -> bool:
    """Tell whether the program of a job is the Python that is running.

    Args:
        job: The job.
        words: The program of its ranks, and its arguments.
    """
    if isinstance(job.algorithm, ScriptAlgorithm):
        return True
    found = None if "PATH" in job.env else shutil.which(words[0], path=search_path(os.environ))
    if found is None or not Path(found).name.startswith("python"):
        return False
    own = Path(sys.executable)
    return Path(found).parent.resolve() == own.parent.resolve() and own.samefile(found)


def _examine(
    job: TrainingJob, code_dir: Path, script: str, words: list[str], found: Examined
) -> None:
    try:
        read = read_script(code_dir, script)
    except UnreadableScript as error:
        if not error.is_wrong:
            found.not_checked.append(f"the script: {error}")
            return
        asked, do = f"the script {error.path!r}", "correct it, or name another file"
        problem = Problem("algorithm", asked, error.found, do, id="script-syntax")
        found.problems.append(problem)
        return
    modules = read.modules
    declared, certain = declared_arguments(read), certain_nodes(modules)
    written: list[str] = []
    if isinstance(job.algorithm, CommandAlgorithm):
        fixed = shlex.split(job.algorithm.command)
        written = fixed[fixed.index(script) + 1 :]
    given = _given(job, words[len(written) :])
    if not _is_parsed(modules, declared):
        declared.doubts.append("a parser that the script may not call")
    elif declared.num_parsers:
        found.problems += argument_problems(declared, given, certain, written)
        found.problems += namespace_problems(modules, declared, certain)
    found.not_checked += _unseen(declared)
    found.problems += habit_problems(job, modules, declared, given)
    # A module may be in a package of another name.
    may_be_elsewhere = job.environment.requirements or any(n.startswith("PYTHON") for n in job.env)
    if not may_be_elsewhere:
        found.problems += import_problems(read, code_dir, script)


def _is_parsed(modules: Sequence[Module], declared: Declared) -> bool:
    """Tell whether the script names what parses the command line, such as the ``main`` it is in."""
    boot = modules[0]
    words = {node.attr for node in ast.walk(boot.tree) if isinstance(node, ast.Attribute)}
    words |= {alias.name for node in imports_of(boot.tree) for alias in node.names}
    calls = set(declared.parse_calls)
    for module in modules:
        for node in module.tree.body:
            if calls & set(ast.walk(node)) and (
                module is boot or "*" in words or getattr(node, "name", None) in {None, *words}
            ):
                return True
    return False


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
