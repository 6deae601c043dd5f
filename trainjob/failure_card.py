"""The failure card: what failed first and what to do, as a page and as one screen of a terminal.

Both say the same, the most important on top. Made of `trainjob.failure.Failure` alone: by the
report of a run and by the terminal.
"""

import re
import textwrap
from collections.abc import Sequence
from itertools import islice

from trainjob.failure import Failure
from trainjob.launch.stall import StalledRank
from trainjob.values import counted

_SCREEN_LINES = 45
_MIN_LAST_LINES = 5
_MAX_TRACEBACK_LINES = 14
_MAX_STACK_LINES = 60
_MIN_WIDTH = 40
_MAX_ROWS = 3
# Escape sequences (ECMA-48), and every control character but tab and line feed.
_CONTROL = re.compile(r"\x1b(?:\[[0-9;?]*[@-~]|[@-_])?|[\x00-\x08\x0b-\x1f\x7f]")


def card_markdown(failure: Failure) -> str:
    """Return the card as markdown, for the artifact of a run."""
    lines = ["## What failed first", "", f"**{_escaped(failure.headline)}**", ""]
    if failure.rule:
        rule = failure.rule
        lines += [f"**{_escaped(rule.name)}:** {_escaped(rule.meaning)}", ""]
        lines += [f"**What to do:** {_escaped(rule.next_step)}", ""]
    lines += [f"**Another try** {_restart_text(failure)}", ""]
    lines += ["| what | value |", "| --- | --- |"]
    lines += [f"| {name} | {_escaped(value)} |" for name, value in _facts(failure)]
    lines.append("")
    if failure.traceback:
        lines += ["Where the script raised:", "", *_fenced(failure.traceback), ""]
    if failure.last_lines:
        said = f"The last {counted(len(failure.last_lines), 'line')} of {failure.who}:"
        lines += [said, "", *_fenced("\n".join(failure.last_lines)), ""]
    if failure.evidence:
        lines += ["What the kernel says:", "", *_fenced("\n".join(failure.evidence)), ""]
    lines += _stall_markdown(failure)
    if failure.log_files:
        lines += ["All logs, on the machine that trained:", ""]
        lines += [*(f"- `{file}`" for file in failure.log_files), ""]
    return "\n".join(lines).rstrip("\n")


def card_text(failure: Failure, width: int = 100) -> str:
    """Return the card as plain text of one screen.

    Args:
        failure: What failed.
        width: Columns of the terminal. Lines of the log are cut to one row, others to three.
    """
    width = max(width, _MIN_WIDTH)
    head = textwrap.wrap(failure.headline, width) or [""]
    if failure.rule:
        head += _wrapped(f"{failure.rule.name}: {failure.rule.meaning}", width)
        head += _wrapped(f"what to do: {failure.rule.next_step}", width)
    head += _wrapped(f"another try {_restart_text(failure).replace('`', '')}", width)
    head += _wrapped(", ".join(f"{name} {value}" for name, value in _facts(failure)), width)
    head += [f"  {line}" for line in failure.evidence]
    head += _stall_text(failure)
    if failure.traceback:
        head += ["", *_middle_left_out(failure.traceback.rstrip("\n").split("\n"))]
    tail = _logs_text(failure)
    room = max(_MIN_LAST_LINES, _SCREEN_LINES - len(head) - len(tail) - 2)
    last = failure.last_lines[-room:]
    if last:
        head += ["", f"last {counted(len(last), 'line')} of {failure.who}:"]
        head += [_cut(f"  {_plain(line)}", width) for line in last]
    return "\n".join([*(_cut(_plain(line), _MAX_ROWS * width) for line in head), *tail])


def _facts(failure: Failure) -> list[tuple[str, str]]:
    facts = [("attempt", str(failure.attempt + 1)), ("node", failure.node), ("time", failure.time)]
    if failure.rank is not None:
        facts.insert(0, ("rank", f"{failure.rank} of {failure.world_size}"))
    if failure.exit_code is not None:
        facts.append(("exit code", str(failure.exit_code)))
    if failure.signal:
        facts.append(("signal", failure.signal))
    return facts


def _restart_text(failure: Failure) -> str:
    if failure.restart:
        return "can help, since this may pass: `limits.auto_restart` says how often it is made."
    return "cannot help, since this would come again; `limits.restart_on: any` makes it anyway."


def _stall_markdown(failure: Failure) -> list[str]:
    if failure.stall is None or not failure.stall.ranks:
        return []
    lines = ["| rank | last step | it | CPU time | at |", "| --- | --- | --- | --- | --- |"]
    lines += [_row(_stalled_cells(rank)) for rank in failure.stall.ranks]
    for rank in failure.stall.ranks:
        if rank.stack.strip():
            stack = rank.stack.strip().split("\n")
            shown = "\n".join(islice(stack, _MAX_STACK_LINES))
            lines += [
                "",
                f"Stacks of rank {rank.rank}, the latest call first:",
                "",
                *_fenced(shown),
            ]
    return [*lines, ""]


def _stall_text(failure: Failure) -> list[str]:
    if failure.stall is None:
        return []
    return [
        f"  rank {rank}: step {step}, {state}, {cpu} of CPU time, at {where}"
        for rank, step, state, cpu, where in map(_stalled_cells, failure.stall.ranks[:16])
    ]


def _stalled_cells(rank: StalledRank) -> tuple[str, str, str, str, str]:
    step = "none" if rank.last_step is None else str(rank.last_step)
    state = f"waits in {rank.waits_in}" if rank.waits_in else rank.state
    return str(rank.rank), step, state, f"{rank.cpu_s:.1f} s", rank.where or "unknown"


def _logs_text(failure: Failure) -> list[str]:
    if failure.log_file is None:
        return []
    lines = ["", f"log: {failure.log_file}"]
    num_others = len([file for file in failure.log_files if file != failure.log_file])
    if num_others:
        lines.append(f"{counted(num_others, 'other log')} beside it")
    return lines


def _middle_left_out(lines: Sequence[str]) -> list[str]:
    """Return the beginning and the end of a traceback, which say most."""
    if len(lines) <= _MAX_TRACEBACK_LINES:
        return list(lines)
    num_tail = _MAX_TRACEBACK_LINES - 4
    left_out = len(lines) - 3 - num_tail
    return [*lines[:3], f"  … {counted(left_out, 'line')} left out", *lines[-num_tail:]]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width - 2, initial_indent="  ", subsequent_indent="    ")


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _plain(text: str) -> str:
    """Return text without anything that a terminal or page would obey."""
    return _CONTROL.sub("", text)


def _escaped(text: str) -> str:
    """Return text that markdown shows as it is, in one line and in the cell of a table."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", _plain(text).replace("\n", " "))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _fenced(text: str) -> list[str]:
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence, _plain(text).rstrip("\n"), fence]
