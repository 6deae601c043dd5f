"""What a run starts in the code folder: the boot file or the startup command.

Only names and files are examined; nothing is executed. Used by `trainjob.source`, for the check
before a run as for the run itself, so that both say the same.
"""

import difflib
import os
import posixpath
import re
import shlex
import shutil
from pathlib import Path

from trainjob.algorithm import CommandAlgorithm, ScriptAlgorithm
from trainjob.errors import Problem

_INTERPRETER = re.compile(r"(?:ba|da|k|z)?sh|python[0-9.]*")
_QUOTED = re.compile(r"\\.|'[^']*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)
_OF_SHELLS = re.compile(r"&&?|\|\|?|.*;|(?!</?\w+>)[0-9]*(?:<|>>?).*|\$\w+|\$\{\w+\}")
"""But not ``<pad>``, which is what models of language call a token."""

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


def startup_problems(
    algorithm: ScriptAlgorithm | CommandAlgorithm,
    code_dir: Path | None,
    files: list[str],
    search_path: str | None = None,
) -> list[Problem]:
    """Return what keeps the boot file or the command from being started.

    Args:
        algorithm: The part of the job.
        code_dir: The folder that holds the code; None if it could not be had, and then only the
            text of the job is examined.
        files: Paths of the files of the code, relative to its folder.
        search_path: The PATH of the ranks; absent: that of this process.
    """
    if isinstance(algorithm, ScriptAlgorithm):
        problem = _boot_file_problem(algorithm.boot_file)
        if problem is None and code_dir is not None:
            problem = _missing_boot_file_problem(algorithm.boot_file, code_dir, files)
    else:
        problem = _command_problem(algorithm.command, code_dir, files, search_path)
    return [problem] if problem else []


def _boot_file_problem(boot_file: str) -> Problem | None:
    """Examine the name alone (ModelArts: the boot file is in the code directory, .py or .pyc)."""
    asked = f"the boot file {boot_file!r}"
    do = "name a Python file by its path below the code folder"
    path = posixpath.normpath(boot_file)
    if path.startswith("/") or path.split("/")[0] == "..":
        return Problem("algorithm.boot_file", asked, "a path out of the code folder", do)
    if not path.endswith((".py", ".pyc")):
        found = "a name that does not end in .py or .pyc"
        do += ", or use kind: command for another language"
        return Problem("algorithm.boot_file", asked, found, do)
    if path.startswith("-"):
        return Problem("algorithm.boot_file", asked, "a name that starts with -", "rename it")
    return None


def _missing_boot_file_problem(boot_file: str, code_dir: Path, files: list[str]) -> Problem | None:
    asked = f"the boot file {boot_file!r}"
    root = code_dir.resolve()
    real = (root / boot_file).resolve()
    if not real.is_relative_to(root):
        found = "a link out of the code folder"
        return Problem("algorithm.boot_file", asked, found, "put the file itself into the folder")
    if posixpath.normpath(boot_file) in files or str(real.relative_to(root)) in files:
        return None
    found = "a folder of that name" if real.is_dir() else "no such file in the code"
    scripts = [file for file in files if file.endswith((".py", ".pyc"))]
    do = _suggestion(boot_file, scripts) or "put it there, or name another file"
    return Problem("algorithm.boot_file", asked, found, do)


def _command_problem(
    command: str, code_dir: Path | None, files: list[str], search_path: str | None
) -> Problem | None:
    asked = f"the command {command!r}"
    try:
        words = shlex.split(command)
    except ValueError as error:
        found = f"text that cannot be split into words ({error})"
        return Problem("algorithm.command", asked, found, "close the quotes, or write \\ twice")
    if not words or not words[0]:
        do = "start it with the program to run"
        return Problem("algorithm.command", asked, "no program in it", do)
    if fault := _shell_fault(command):
        do = (
            "write it into a script and say sh start.sh, or say sh -c '…'; put it in quotes if the "
            "program is to have it as it is"
        )
        return Problem("algorithm.command", asked, f"{fault}; no shell runs it", do)
    if _ASSIGNMENT.match(words[0]):
        found = f"{words[0]!r} where its program should be; no shell runs it"
        return Problem("algorithm.command", asked, found, "set variables by env in the job")
    if code_dir is None:
        return None
    wrong = _program_fault(words[0], code_dir, files, search_path)
    if wrong is None and len(words) > 1:
        wrong = _script_fault(words[0], words[1], code_dir, files)
    return Problem("algorithm.command", asked, *wrong) if wrong else None


def _shell_fault(command: str) -> str | None:
    """Find what a shell would not hand on as a word, such as ``&&``; in quotes it would."""
    words = _QUOTED.sub("''", command).split()
    found = next((word for word in words if _OF_SHELLS.fullmatch(word)), None)
    return found and f"{found!r}, which only a shell understands"


def _program_fault(
    program: str, code_dir: Path, files: list[str], search_path: str | None
) -> tuple[str, str] | None:
    """Return what was found instead of the program and what to do, or None if it can be run."""
    if "/" not in program:
        if shutil.which(program, path=search_path):
            return None
        if (code_dir / program).is_file():
            # As in a terminal: the folder that a program is started in is not on PATH.
            return f"{program!r} in the code folder but not on PATH", f"write './{program}'"
        do = _suggestion(program, files) or "install it on this machine, or add it to the code"
        return f"no program {program!r} on PATH", do
    file = code_dir / program
    if not file.is_file():
        do = _suggestion(program, files) or "correct the path, which starts at the code folder"
        return f"no file {program!r}", do
    if not os.access(file, os.X_OK):
        do = f"make it executable, or write its interpreter first, such as 'sh {program}'"
        return f"a file {program!r} that is not executable", do
    return None


def _script_fault(
    program: str, script: str, code_dir: Path, files: list[str]
) -> tuple[str, str] | None:
    """Find ``sh strat.sh``: the script that an interpreter is given is not there."""
    is_interpreter = _INTERPRETER.fullmatch(posixpath.basename(program))
    if not is_interpreter or script.startswith("-") or (code_dir / script).exists():
        return None
    do = _suggestion(script, files) or "correct the path, which starts at the code folder"
    return f"no file {script!r} in the code", do


def _suggestion(path: str, files: list[str]) -> str | None:
    """Suggest the file that was meant: one of that name elsewhere, or one of a similar path."""
    name = posixpath.basename(path)
    same_name = sorted((f for f in files if posixpath.basename(f) == name), key=len)
    near = same_name or difflib.get_close_matches(posixpath.normpath(path), files, n=1)
    return f"did you mean {near[0]!r}?" if near else None
