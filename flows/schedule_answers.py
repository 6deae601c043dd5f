"""Answers ``python -m flows schedule``: make, list and delete what starts jobs by itself."""

import argparse
from dataclasses import asdict
from typing import Any
from zoneinfo import ZoneInfo

from flows.algorithm_forms import as_taken
from flows.cache_command import Answer
from flows.job_variables import merged, read_variables
from flows.new_versions import job_on_versions_of
from flows.pool_sizes import size_variables
from flows.registry_place import chosen_registry
from flows.run_logs import Say
from flows.schedule_times import Times, in_words, next_start, read_cron, read_interval, read_rrule
from flows.schedules import (
    add_retraining,
    add_schedule,
    delete_schedule,
    job_of_schedule,
    list_schedules,
)
from flows.server_client import configured_server
from flows.submitting import (
    deployment_for,
    deployment_name,
    pool_of,
    shared_checkpoints,
    warnings,
    with_priority,
)
from flows.text_table import table
from trainjob.cost import cost_text
from trainjob.errors import TrainjobError
from trainjob.job import TrainingJob


def schedule(arguments: argparse.Namespace, say: Say) -> Answer:
    """Make a schedule of a job file, or list or delete schedules.

    Raises:
        TrainjobError: If it cannot be done as it was asked for.
    """
    if arguments.what == "list":
        return _list()
    if arguments.what == "delete":
        return _delete(arguments.target)
    if arguments.target is not None:
        raise TrainjobError(
            f"asked for a schedule of {arguments.what!r}, found {arguments.target!r} after it; "
            "give one job file, and the name of the schedule by --name"
        )
    times = _times(arguments)
    with configured_server() as client:
        job = TrainingJob.load(arguments.what, chosen_registry())
        base = deployment_for(client, job, arguments.pool)
        base = with_priority(client, base, arguments.priority)
        name = deployment_name(arguments.name or job.name)
        pool = pool_of(client, base)
        size = size_variables(pool, job.resources.flavor)
        variables = merged(base.job_variables, size, read_variables(arguments.job_variables, pool))
        base = base.model_copy(update={"job_variables": variables})
        data = as_taken(base, job, job_of_schedule(arguments.what, job))
        if times is None:
            dataset = arguments.on_dataset
            data = job_on_versions_of(arguments.what, data, dataset)
            was_paused = add_retraining(client, job, base, name, dataset, data)
        else:
            was_paused = add_schedule(client, job, base, name, times, data)
        cost = cost_text(job)
        if cost:
            say(f"cost: {cost}; so much for every run")
        ended = [f"the schedule {name!r} was paused, and is not any more"] if was_paused else []
        about = warnings(client, job, base, pool, variables)
        for warning in (*ended, *about, *shared_checkpoints(job)):
            say(f"warning: {warning}")
    if times is None:
        when, then = f"on every new version of the dataset {dataset}", ""
        facts: dict[str, Any] = {"dataset": dataset}
    else:
        when, then, facts = _said_of(times)
    pool_name = base.work_pool_name
    text = f"{job.name} is run by the schedule {name!r}, {when}, by the pool {pool_name}{then}"
    return Answer(text, {"name": name, "cost": cost, **facts})


def _said_of(times: Times) -> tuple[str, str, dict[str, Any]]:
    """Return when a schedule starts its runs, when the first of them, and both as values."""
    when, first = in_words(times), next_start(times)
    when = when if when.startswith("every ") else f"at {when}"
    facts = times.model_dump(mode="json", exclude={"day_or"})
    facts["next_start"] = None if first is None else str(first)
    zone = times.timezone or "UTC"
    then = f"; first at {first.astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M} ({zone})" if first else ""
    return when, then, facts


def _times(arguments: argparse.Namespace) -> Times | None:
    """Return when the job is to start; None if a dataset decides it.

    Raises:
        TrainjobError: If nothing says when, or what says it is no schedule.
    """
    if arguments.anchor is not None and arguments.every is None:
        raise TrainjobError(
            f"asked for --anchor {arguments.anchor!r}, found no --every that is counted from it; "
            "write both, such as --every 6h --anchor 2026-01-31T03:00"
        )
    timezone = "UTC" if arguments.timezone is None else arguments.timezone
    if arguments.cron is not None:
        return read_cron(arguments.cron, timezone)
    if arguments.every is not None:
        return read_interval(arguments.every, arguments.anchor, timezone)
    if arguments.rrule is not None:
        return read_rrule(arguments.rrule, timezone)
    if arguments.on_dataset is None:
        raise TrainjobError(
            f"asked for a schedule of {arguments.what!r}, found nothing that says when; write "
            "--cron, --every, --rrule or --on-dataset, such as, for every night at three, "
            f"python -m flows schedule {arguments.what} --cron '0 3 * * *'"
        )
    if arguments.timezone is not None:
        raise TrainjobError(
            f"asked for --timezone {arguments.timezone!r}, found --on-dataset, which starts the "
            "job at no time of day; remove one of them"
        )
    return None


def _list() -> Answer:
    with configured_server() as client:
        found = list_schedules(client)
    head = ("NAME", "WHEN", "ACTIVE", "NEXT", "POOL")
    rows = [
        (
            schedule.name,
            schedule.when,
            "yes" if schedule.is_active else "no",
            f"{schedule.next_start.astimezone():%Y-%m-%d %H:%M}" if schedule.next_start else "-",
            schedule.pool or "-",
        )
        for schedule in found
    ]
    text = "\n".join(table([head, *rows])) if rows else "no schedules"
    data = [asdict(s) | {"next_start": str(s.next_start or "") or None} for s in found]
    return Answer(text, {"schedules": data})


def _delete(name: str | None) -> Answer:
    if name is None:
        raise TrainjobError(
            "asked to delete a schedule, found no name; write python -m flows schedule delete NAME"
        )
    with configured_server() as client:
        delete_schedule(client, name)
    text = f"deleted the schedule {name!r}; its runs that have begun stay, those planned are gone"
    return Answer(text, {"deleted": name})
