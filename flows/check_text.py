"""What a check found, as a person reads it: errors, warnings and what was not checked."""

from collections.abc import Iterable

from trainjob.check.checking import Findings
from trainjob.errors import Problem
from trainjob.values import counted

NOT_READ = "everything outside the job file, such as code, stores and machine: correct it first"
"""What was not checked of a job that could not be read."""


def errors_text(source: str, findings: Findings) -> str:
    """Return all that was found in a job that cannot run.

    Args:
        source: What the job is called, such as the path of its file.
        findings: What was found.
    """
    lines = [f"{source}: {counted(len(findings.errors), 'problem')}", *_lines(findings.errors)]
    return "\n".join([*lines, *more_lines(findings)])


def more_lines(findings: Findings) -> list[str]:
    """Return the lines of the code, the cost, of warnings and of what was not checked."""
    code = [f"  code: {findings.code}"] if findings.code else []
    cost = [f"  cost: {findings.cost}"] if findings.cost else []
    warnings = ["  warnings:", *_lines(findings.warnings, "    ")] if findings.warnings else []
    not_checked = ["  not checked:", *(f"    {text}" for text in findings.not_checked)]
    return [*code, *cost, *warnings, *not_checked]


def findings_markdown(findings: Findings) -> str:
    """Return the findings as a page: a table of problems, code, cost, and what was not checked."""
    rows = [
        (p.level, p.id, p.field, p.asked, p.found, p.do)
        for p in (*findings.errors, *findings.warnings)
    ]
    table = ["| level | rule | field | asked | found | do |", "|---|---|---|---|---|---|"]
    table += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    problems = table if rows else ["Nothing wrong found."]
    cost = ["", f"Code: {findings.code}."] if findings.code else []
    cost += ["", f"Cost: {findings.cost}."] if findings.cost else []
    return "\n".join(
        [*problems, *cost, "", "Not checked:", "", *(f"- {t}" for t in findings.not_checked)]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _lines(problems: Iterable[Problem], indent: str = "  ") -> list[str]:
    return [f"{indent}{problem} [{problem.id}]" for problem in problems]
