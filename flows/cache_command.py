"""``python -m flows cache ls | prune | verify``: datasets, environments that runs here share.

Nothing is printed here: every command returns an answer, which `flows.__main__` shows.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from flows.cached_environments import (
    about_environment,
    ago,
    environment_facts,
    environment_lines,
    prune_environments,
)
from flows.text_table import table
from trainjob.environments.folder import Environment
from trainjob.storage.cache.evict import (
    Removable,
    removable,
    remove_unused,
    stored_bytes,
    unfinished,
)
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.snapshot import Snapshot
from trainjob.storage.cache.verify import take_back, wrong_files
from trainjob.values import counted, format_size, parse_duration, parse_size

_KEY_CHARS = 12
_MAX_NAMED = 20
_UNFINISHED_S = 24 * 3600.0
"""How long what broke off is left to a run that tries again."""

_HEAD = ("DATASET", "FILES", "SIZE", "LAST USED", "URL", "IN USE BY")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command has to say.

    Attributes:
        text: For a person.
        data: The same as JSON values.
        is_good: Whether everything is as it should be.
    """

    text: str
    data: dict[str, Any]
    is_good: bool = True


def add_cache_command(commands: Any) -> argparse.ArgumentParser:
    """Add ``cache`` and its commands to the command line, and return its parser.

    Args:
        commands: What ``add_subparsers`` of the parser returned. ``answer`` of its arguments will
            be a function that takes them and returns an `Answer`.
    """
    cache = commands.add_parser(
        "cache", help="the datasets and environments that runs of this machine share"
    )
    actions = cache.add_subparsers(title="commands", required=True, metavar="COMMAND")

    listed = actions.add_parser("ls", help="what is there, and what uses it")
    listed.set_defaults(answer=_list)

    prune = actions.add_parser(
        "prune",
        help="remove copies that nobody goes on with and, as the options say, what no run uses",
    )
    which = prune.add_mutually_exclusive_group()
    which.add_argument("--max-size", type=_size, metavar="SIZE", help="until SIZE is left: 200GiB")
    which.add_argument("--older-than", type=_age_s, metavar="AGE", help="unused for AGE: 7d")
    which.add_argument("--all", action="store_true", help="everything that no run uses")
    prune.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    prune.set_defaults(answer=_prune)

    verify = actions.add_parser(
        "verify", help="read every byte, and throw away what is not as its manifest says"
    )
    verify.set_defaults(answer=_verify)
    for action in (listed, prune, verify):
        action.add_argument("--json", action="store_true", help="print one JSON object")
    return cast(argparse.ArgumentParser, cache)


def _list(_arguments: argparse.Namespace) -> Answer:
    cache = Cache.of_machine()
    snapshots = cache.snapshots()
    rows = [_HEAD, *map(_row, snapshots)] if snapshots else []
    lines = table(rows)
    total = format_size(sum(snapshot.stored_bytes for snapshot in snapshots))
    lines.append(f"{counted(len(snapshots), 'dataset')}, {total} in {cache.root}")
    if copies := unfinished(cache):
        about = (
            f"{counted(len(copies), 'dataset')} not finished, {format_size(sum(copies.values()))}"
        )
        lines.append(f"{about}; a run that wants it goes on with it")
    if wrong := sum(snapshot.is_taken_back for snapshot in snapshots):
        found = f"{counted(wrong, 'dataset')} found wrong by verify"
        lines.append(f"{found}; left to the runs that use it, given to no other, then removed")
    if broken := cache.broken():
        found = f"{counted(len(broken), 'dataset')} that cannot be read"
        lines.append(f"{found}; python -m flows cache prune removes what no run uses")
    if hidden := cache.hidden():
        found = f"{counted(len(hidden), 'dataset')} of another user"
        lines.append(f"{found}, which this one may not read; use one cache a user")
    lines += environment_lines(time.time())
    data = {
        "cache": str(cache.root),
        "datasets": [_facts(snapshot) for snapshot in snapshots],
        "unfinished": [
            {"path": str(folder), "size_bytes": size} for folder, size in copies.items()
        ],
        "broken": [str(root) for root in broken],
        "hidden": [str(root) for root in hidden],
        "environments": environment_facts(),
    }
    return Answer("\n".join(lines), data)


def _prune(arguments: argparse.Namespace) -> Answer:
    cache = Cache.of_machine()
    chosen = list(_chosen(cache, arguments))
    if not arguments.dry_run:
        chosen = [unused for unused in chosen if remove_unused(cache, unused)]
    old = _old_environments(arguments)
    verb = "would remove" if arguments.dry_run else "removed"
    lines = [f"{verb} {_about(unused)}" for unused in chosen]
    lines += [f"{verb} {about_environment(environment)}" for environment in old]
    sizes = [unused.size_bytes for unused in chosen] + [made.size_bytes for made in old]
    total = format_size(sum(sizes))
    left = cache.snapshots()
    in_use = sum(bool(snapshot.users()) for snapshot in left)
    lines.append(f"{verb} {total}; there: {counted(len(left), 'dataset')}, {in_use} in use")
    removed = [{"path": str(unused.path), "size_bytes": unused.size_bytes} for unused in chosen]
    removed += [{"path": str(made.root), "size_bytes": made.size_bytes} for made in old]
    return Answer("\n".join(lines), {"dry_run": arguments.dry_run, "removed": removed})


def _verify(_arguments: argparse.Namespace) -> Answer:
    cache = Cache.of_machine()
    stored = [
        snapshot
        for snapshot in cache.snapshots()
        if snapshot.header.place is None and not snapshot.is_taken_back
    ]
    lines, problems = [], {}
    for snapshot in stored:
        found = wrong_files(snapshot)
        size = format_size(snapshot.stored_bytes)
        files = f"{counted(snapshot.header.num_files, 'file')}, {size}"
        about = f"{snapshot.key[:_KEY_CHARS]}  {snapshot.header.url}: {files}"
        if found and not snapshot.is_there():
            lines.append(f"{about}, removed meanwhile by another process")
            continue
        problems[snapshot.key] = found
        if not found:
            lines.append(f"{about}, all as the manifest says")
            continue
        users = ", ".join(_users(snapshot))
        become = "thrown away" if take_back(cache, snapshot) else f"in use by {users or 'a run'}"
        lines.append(
            f"{about}, NOT what its manifest says; {become}, the next run fetches it again"
        )
        lines += [f"  {problem}" for problem in found[:_MAX_NAMED]]
        if len(found) > _MAX_NAMED:
            lines.append(f"  and {len(found) - _MAX_NAMED} more")
    text = "\n".join(lines or [f"nothing to verify in {cache.root}"])
    is_good = not any(problems.values())
    return Answer(text, {"cache": str(cache.root), "problems": problems}, is_good)


def _chosen(cache: Cache, arguments: argparse.Namespace) -> Iterator[Removable]:
    """Yield what the arguments name.

    Without any, that is what no run can go on with or has gone on with for a day, and what
    ``TRAINJOB_CACHE_MAX_SIZE`` has no room for.
    """
    limit = cache.max_size_bytes if arguments.max_size is None else arguments.max_size
    stored = stored_bytes(cache)
    for unused in removable(cache):
        age_s = time.time() - unused.used_at
        if arguments.older_than is not None:
            is_chosen = age_s > arguments.older_than
        else:
            is_over = limit is not None and stored > limit
            is_left = not unused.is_wanted and age_s > _UNFINISHED_S
            is_chosen = arguments.all or is_left or is_over
        if is_chosen:
            stored -= unused.size_bytes
            yield unused


def _old_environments(arguments: argparse.Namespace) -> list[Environment]:
    """Remove the environments that the arguments name; a size is that of datasets alone."""
    if arguments.older_than is None and not arguments.all:
        return []
    return prune_environments(arguments.older_than or 0.0, dry_run=arguments.dry_run)


def _about(unused: Removable) -> str:
    size = format_size(unused.size_bytes)
    return f"{unused.path.name[:_KEY_CHARS]}  {unused.what}: {size}"


def _row(snapshot: Snapshot) -> tuple[str, ...]:
    header = snapshot.header
    return (
        snapshot.key[:_KEY_CHARS],
        f"{header.num_files:,}",
        "in place" if header.place else format_size(snapshot.stored_bytes),
        ago(time.time() - snapshot.used_at()),
        f"{header.url} (found wrong)" if snapshot.is_taken_back else header.url,
        ", ".join(_users(snapshot)) or "-",
    )


def _facts(snapshot: Snapshot) -> dict[str, Any]:
    header = snapshot.header
    used_at = datetime.fromtimestamp(snapshot.used_at(), UTC)
    return {
        "key": snapshot.key,
        "path": str(snapshot.data),
        "url": header.url,
        "fingerprint": header.fingerprint,
        "num_files": header.num_files,
        "size_bytes": header.size_bytes,
        "verified": header.verified,
        "created": header.created,
        "last_used": used_at.isoformat(timespec="seconds"),
        "is_in_place": header.place is not None,
        "is_taken_back": snapshot.is_taken_back,
        "in_use_by": _users(snapshot),
    }


def _users(snapshot: Snapshot) -> list[str]:
    return sorted({f"{user.holder} (pid {user.owner.pid})" for user in snapshot.users()})


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _age_s(text: str) -> float:
    try:
        return float(parse_duration(text).total_seconds())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
