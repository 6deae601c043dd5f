"""Runs as a terminal shows them: rows of a list, and all that is known of one."""

import math
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter

from flows.text_table import table
from trainjob.failure import Failure
from trainjob.failure_card import card_text
from trainjob.metrics.summary import format_value
from trainjob.spent import Spent
from trainjob.values import counted, format_size

_HEAD = ("NAME", "STATE", "JOB", "POOL", "STARTED", "TOOK", "ID")
_ID_CHARS = 8  # enough to name a run among thousands
_MAX_METRICS = 10
_FAILURE = TypeAdapter(Failure)
_SPENT = TypeAdapter(Spent)


def list_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the facts of runs as a table."""
    if not rows:
        return "no such runs"
    return "\n".join(table([_HEAD, *(_row(facts) for facts in rows)]))


def show_text(facts: dict[str, Any], width: int) -> str:
    """Return all that is known of a run as lines.

    Args:
        facts: What `flows.run_facts.all_facts` returns.
        width: Columns of the terminal.
    """
    lines = [
        f"{facts['name']}: {facts['state']}",
        f"  run      {facts['id']}",
        f"  job      {facts['job']}{_described(facts)}",
        *_version_lines(facts),
        f"  pool     {facts['pool'] or 'none, it runs where it was started'}",
        f"  times    {_times(facts)}",
        *(f"  tag      {tag}" for tag in facts["tags"]),
        *_progress_lines(facts["progress"]),
    ]
    if facts["rerun_of"]:
        lines.append(f"  rerun of {facts['rerun_of']}")
    if facts["restarts"]:
        lines.append(f"  restarts {facts['restarts']}")
    lines += [f"  stage    {row}" for row in _stage_rows(facts["stages"])]
    if facts["spent"]:
        lines.append(f"  took     {_SPENT.validate_python(facts['spent'])}")
    lines += [f"  metric   {_metric(metric)}" for metric in facts["metrics"][:_MAX_METRICS]]
    if len(facts["metrics"]) > _MAX_METRICS:
        lines.append(f"           and {len(facts['metrics']) - _MAX_METRICS} more")
    lines += [f"  output   {_output(output)}" for output in facts["outputs"]]
    lines += [f"  saved    {line}" for line in facts["saved"]]
    lines += [f"  note     {line}" for line in facts["notes"]]
    return "\n".join([*lines, *_why(facts, width)])


def _row(facts: dict[str, Any]) -> tuple[str, ...]:
    started = datetime.fromisoformat(facts["started"]) if facts["started"] else None
    return (
        facts["name"],
        facts["state"],
        facts["job"],
        facts["pool"] or "-",
        f"{started.astimezone():%m-%d %H:%M}" if started else "-",
        "-" if facts["seconds"] is None else _length(facts["seconds"]),
        facts["id"][:_ID_CHARS],
    )


def _described(facts: dict[str, Any]) -> str:
    return f": {facts['description']}" if facts["description"] else ""


def _version_lines(facts: dict[str, Any]) -> Iterator[str]:
    if facts["number"]:
        yield f"  version  run {facts['number']:,} of the job {facts['job']}"


def _times(facts: dict[str, Any]) -> str:
    said = [f"submitted {_clock(facts['submitted'])}"]
    if facts["started"]:
        said.append(f"started {_clock(facts['started'])}")
    if facts["ended"]:
        said.append(f"ended {_clock(facts['ended'])}")
    if facts["seconds"] is not None:
        said.append(f"{'took' if facts['ended'] else 'so far'} {_length(facts['seconds'])}")
    return ", ".join(said)


def _progress_lines(progress: dict[str, Any] | None) -> Iterator[str]:
    if progress:
        yield f"  progress {progress['percent']:.0f} %  {progress['text']}"


def _stage_rows(stages: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        (
            stage["name"],
            stage["state"],
            "" if stage["seconds"] is None else f"{stage['seconds']:.1f} s",
            stage["summary"] or "",
        )
        for stage in stages
    ]
    return table(rows) if rows else []


def _metric(metric: dict[str, Any]) -> str:
    value = math.nan if metric["last"] is None else metric["last"]
    return f"{metric['name']} {format_value(value)} at step {metric['last_step']:,}"


def _output(output: dict[str, Any]) -> str:
    files = f"{counted(output['num_files'], 'file')}, {format_size(output['size_bytes'])}"
    return f"{output['name']}  {output['url']}  {files}"


def _why(facts: dict[str, Any], width: int) -> Iterator[str]:
    """Yield why a run failed, or what its state says where that is not its name again."""
    if facts["failure"]:
        yield ""
        yield card_text(_FAILURE.validate_python(facts["failure"]), width)
    elif facts["error"] or facts["message"]:
        yield ""
        yield str(facts["error"] or facts["message"])


def _clock(iso: str) -> str:
    return f"{datetime.fromisoformat(iso).astimezone():%Y-%m-%d %H:%M:%S}"


def _length(seconds: float) -> str:
    """Return a time as people say it: ``12 s``, ``4m 20s``, ``3h 5m``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m {rest}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60}m"
