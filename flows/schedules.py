"""Jobs that start by themselves: a deployment of the flow with the job and what starts it.

That is a schedule of Prefect, or an automation that waits for new versions of a dataset.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort

from flows.new_versions import Waiting, automation_of, owner_of, waiting_deployments
from flows.schedule_times import Times, in_words
from flows.submitting import deployments, find_deployment
from trainjob.errors import JobError, Problem, TrainjobError
from trainjob.job import TrainingJob
from trainjob.job_rules import RUN_ID
from trainjob.jobfile import read_job_file

MADE_HERE = "trainjob-schedule"
"""Tag of the deployments that were made here; others, such as those of prefect.yaml, stay."""

MADE_FROM_ALGORITHM = "trainjob-algorithm"
"""Tag of those that `flows.algorithm_deployment` made."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A deployment that starts by itself.

    Attributes:
        name: That of the deployment.
        when: What starts it, in words.
        is_active: Whether it does, and was not switched off.
        pool: Where it runs.
        next_start: When it is started next; None if that is not known yet.
        is_ours: Whether it was made here.
    """

    name: str
    when: str
    is_active: bool
    pool: str | None
    next_start: datetime | None
    is_ours: bool


def job_of_schedule(path: str, job: TrainingJob) -> dict[str, Any]:
    """Return a job of which each run looks its flavor up, as the file names it.

    What the platform says of it, such as its price, is then that of the day, also after years.

    Args:
        path: The file of the job.
        job: What was read from it.
    """
    data = job.model_dump(mode="json")
    flavor = (read_job_file(Path(path)).get("resources") or {}).get("flavor")
    if isinstance(flavor, str):
        data["resources"]["flavor"] = flavor
    return data


def add_schedule(
    client: SyncPrefectClient,
    job: TrainingJob,
    base: DeploymentResponse,
    name: str,
    times: Times,
    data: dict[str, Any],
) -> bool:
    """Have a job started by a schedule; one of the same name that was made here is replaced.

    Args:
        client: How to reach the server.
        job: The job, its paths absolute.
        base: The deployment that says how it is started, and by the workers of which pool, with
            the job variables that the runs get.
        name: Name of the schedule.
        times: When.
        data: The job as `job_of_schedule` returns it.

    Returns:
        Whether somebody had paused the one that is replaced, which this one is not.

    Raises:
        JobError: If the second run would find its place taken by the first.
        TrainjobError: If a deployment has the name that was not made here.
    """
    refuse_shared_places(job)
    return _make_deployment(client, job, base, name, data, times)[1]


def add_retraining(
    client: SyncPrefectClient,
    job: TrainingJob,
    base: DeploymentResponse,
    name: str,
    dataset: str,
    data: dict[str, Any],
) -> bool:
    """Have a job started whenever a dataset gets a new version, as `add_schedule` does.

    Args:
        client: How to reach the server.
        job: The job, its paths absolute.
        base: The deployment that says how it is started, and by the workers of which pool, with
            the job variables that the runs get.
        name: Name of the schedule.
        dataset: Name of the dataset.
        data: The job as `flows.new_versions.job_on_versions_of` returns it.

    Returns:
        Whether somebody had paused the one that is replaced, which this one is not.

    Raises:
        JobError: If the second run would find its place taken by the first.
        TrainjobError: If a deployment has the name that was not made here.
    """
    refuse_shared_places(job)
    made, was_paused = _make_deployment(client, job, base, name, data, None)
    client.create_automation(automation_of(made, name, dataset, data))
    return was_paused


def _make_deployment(
    client: SyncPrefectClient,
    job: TrainingJob,
    base: DeploymentResponse,
    name: str,
    data: dict[str, Any],
    times: Times | None,
) -> tuple[UUID, bool]:
    """Return the deployment, and whether the one that it replaces was paused."""
    known = find_deployment(client, name)
    if known is not None and MADE_HERE not in known.tags:
        raise TrainjobError(
            f"asked for a schedule of the name {name!r}, found a deployment of that name which "
            "this command has not made; give another --name"
        )
    was_paused = False
    if known is not None:
        was_paused = _is_paused(client, known)
        client.delete_resource_owned_automations(owner_of(known.id))
    # An upsert: the server drops the old schedule and the runs that it has planned, and the
    # deployment stays, without which a run that goes on could not be started again.
    made = client.create_deployment(
        flow_id=base.flow_id,
        name=name,
        description=job.description or f"The job {job.name}, which starts by itself.",
        schedules=[] if times is None else [DeploymentScheduleCreate(schedule=times)],
        parameters={"job": data},
        tags=sorted({*inherited_tags(base), *job.tags, MADE_HERE}),
        paused=False,
        **kept_limit(known),
        **same_start(base),
    )
    return made, was_paused


def _is_paused(client: SyncPrefectClient, known: DeploymentResponse) -> bool:
    """Tell whether somebody has switched off all that starts a deployment."""
    waiting = waiting_deployments(client.read_automations()).get(known.id)
    if waiting is not None:
        return not waiting.is_active
    return bool(known.schedules) and not _is_active(known)


def same_start(base: DeploymentResponse) -> dict[str, Any]:
    """Return the part of a deployment that says how and by whom its runs are started."""
    return {
        "entrypoint": base.entrypoint,
        "path": base.path,
        "pull_steps": base.pull_steps or [],  # of None, an upsert would keep the old ones
        "job_variables": base.job_variables,
        "work_pool_name": base.work_pool_name,
        "work_queue_name": base.work_queue_name,
        "parameter_openapi_schema": base.parameter_openapi_schema,
        "enforce_parameter_schema": base.enforce_parameter_schema,
        "version": base.version,
    }


def kept_limit(known: DeploymentResponse | None) -> dict[str, Any]:
    """Return the part of a deployment that limits its runs, which an upsert would remove.

    Args:
        known: The deployment that is made anew; None: there is none, and so no limit.
    """
    if known is None or known.global_concurrency_limit is None:
        return {}
    return {
        "concurrency_limit": known.global_concurrency_limit.limit,
        "concurrency_options": known.concurrency_options,
    }


def inherited_tags(base: DeploymentResponse) -> set[str]:
    """Return the tags of a deployment, without those that say what has made it."""
    return set(base.tags) - {MADE_HERE, MADE_FROM_ALGORITHM}


def list_schedules(client: SyncPrefectClient) -> list[Schedule]:
    """Return every deployment of training jobs that starts by itself, by name."""
    waiting = waiting_deployments(client.read_automations())
    found = []
    for deployment in deployments(client):
        if deployment.id in waiting:
            found.append(_waiting_schedule(deployment, waiting[deployment.id]))
        elif deployment.schedules:
            found.append(_timed_schedule(client, deployment))
    return found


def _timed_schedule(client: SyncPrefectClient, deployment: DeploymentResponse) -> Schedule:
    return Schedule(
        name=deployment.name,
        when=", ".join(in_words(item.schedule) for item in deployment.schedules),
        is_active=_is_active(deployment),
        pool=deployment.work_pool_name,
        next_start=_next_start(client, deployment),
        is_ours=MADE_HERE in deployment.tags,
    )


def _is_active(deployment: DeploymentResponse) -> bool:
    return not deployment.paused and any(item.active for item in deployment.schedules)


def _waiting_schedule(deployment: DeploymentResponse, waiting: Waiting) -> Schedule:
    return Schedule(
        name=deployment.name,
        when=f"every new version of the dataset {waiting.dataset}",
        is_active=waiting.is_active,
        pool=deployment.work_pool_name,
        next_start=None,
        is_ours=MADE_HERE in deployment.tags,
    )


def delete_schedule(client: SyncPrefectClient, name: str) -> None:
    """Delete a schedule that was made here, and its runs that have not begun.

    Raises:
        TrainjobError: If there is none of the name, or it was not made here.
    """
    known = find_deployment(client, name)
    if known is None:
        ours = [schedule.name for schedule in list_schedules(client) if schedule.is_ours]
        raise TrainjobError(
            f"asked for the schedule {name!r}, found: {', '.join(ours) or 'none'}; see "
            "`python -m flows schedule list`"
        )
    if MADE_HERE not in known.tags:
        raise TrainjobError(
            f"asked to delete the schedule {name!r}, found a deployment that this command has not "
            "made; change it where it is kept, such as prefect.yaml, or in the UI"
        )
    client.delete_resource_owned_automations(owner_of(known.id))
    client.delete_deployment(known.id)


def refuse_shared_places(job: TrainingJob) -> None:
    """See that each run of a job has places of its own, which must be empty when it starts.

    Raises:
        JobError: If not.
    """
    places = {f"outputs[{i}].url": channel.url for i, channel in enumerate(job.outputs)}
    if job.logs.url is not None:
        places["logs.url"] = job.logs.url
    problems = [
        Problem(
            field,
            "a place for every run",
            f"{url!r}, which the second run finds taken",
            f"write {RUN_ID} into it, which becomes the id of the run",
        )
        for field, url in places.items()
        if RUN_ID not in url
    ]
    if problems:
        raise JobError(f"a schedule of {job.name!r}", problems)


def _next_start(client: SyncPrefectClient, deployment: DeploymentResponse) -> datetime | None:
    now = datetime.now(UTC)
    found: list[FlowRun] = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        flow_run_filter=FlowRunFilter(
            expected_start_time=FlowRunFilterExpectedStartTime(after_=now)
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=1,
    )
    return found[0].expected_start_time if found else None
