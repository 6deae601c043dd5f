"""Environments with requirements, as ``python -m flows cache`` lists and removes them."""

import time
from datetime import UTC, datetime
from typing import Any

from flows.text_table import table
from trainjob.environments.folder import (
    Environment,
    environments,
    environments_folder,
    remove_environment,
)
from trainjob.values import counted, format_size

_KEY_CHARS = 12
_REQUIREMENTS_CHARS = 60
_HEAD = ("ENVIRONMENT", "PACKAGES", "SIZE", "LAST USED", "REQUIREMENTS", "IN USE")


def environment_lines(now: float) -> list[str]:
    """Return lines about all environments; nothing if there is none."""
    made = environments(environments_folder())
    if not made:
        return []
    total = format_size(sum(environment.size_bytes for environment in made))
    rows = [_HEAD, *(_row(environment, now) for environment in made)]
    return ["", *table(rows), f"{counted(len(made), 'environment')}, {total}"]


def environment_facts() -> list[dict[str, Any]]:
    """Return all environments as JSON values."""
    return [
        {
            "key": made.key,
            "path": str(made.root),
            "requirements": made.lines,
            "num_packages": made.num_packages,
            "size_bytes": made.size_bytes,
            "last_used": datetime.fromtimestamp(made.used_at, UTC).isoformat(timespec="seconds"),
            "is_used": made.is_used(),
            "is_broken": made.is_broken,
        }
        for made in environments(environments_folder())
    ]


def prune_environments(unused_for_s: float, *, dry_run: bool) -> list[Environment]:
    """Remove environments that no run uses, and return them.

    Args:
        unused_for_s: Only those that no run began to use for longer.
        dry_run: Return what would be removed.
    """
    folder = environments_folder()
    old = [e for e in environments(folder) if time.time() - e.used_at > unused_for_s]
    if dry_run:
        return [environment for environment in old if not environment.is_used()]
    return [environment for environment in old if remove_environment(folder, environment)]


def about_environment(environment: Environment) -> str:
    """Return which environment it is, in one line."""
    size = format_size(environment.size_bytes)
    return f"{environment.key[:_KEY_CHARS]}  environment of {_requirements(environment)}: {size}"


def _row(environment: Environment, now: float) -> tuple[str, ...]:
    return (
        environment.key[:_KEY_CHARS],
        str(environment.num_packages),
        format_size(environment.size_bytes),
        ago(now - environment.used_at),
        _requirements(environment),
        "yes" if environment.is_used() else "-",
    )


def _requirements(environment: Environment) -> str:
    if environment.is_broken:
        return "unknown: it is broken"
    text = ", ".join(environment.lines) or "nothing"
    return text if len(text) <= _REQUIREMENTS_CHARS else f"{text[: _REQUIREMENTS_CHARS - 1]}…"


def ago(seconds: float) -> str:
    """Return how long ago something was."""
    for unit, size_s in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size_s:
            return f"{int(seconds // size_s)}{unit} ago"
    return "just now"
