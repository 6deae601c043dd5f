"""Hands a job to the workers of a pool, and says before what may keep it from running there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun, WorkerStatus, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.states import Scheduled
from prefect.types import BANNED_CHARACTERS

from flows.algorithm_forms import as_taken
from flows.job_variables import environment_of, merged
from flows.local_places import place_warnings
from flows.pool_sizes import size_variables
from flows.priorities import QUEUES, Priority
from flows.runs import FLOW, RERUN_OF_LABEL
from trainjob.cost import cost_text
from trainjob.errors import TrainjobError
from trainjob.job import TrainingJob
from trainjob.launch.launch import Device

_POOLS = {"cpu": "cpu", "cuda": "gpu", "npu": "npu"}
"""The deployment for jobs of a device; prefect.yaml has one of that name on the pool."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A run that a worker is to start.

    Attributes:
        run: As the server has made it.
        warnings: What may keep it from starting or running, one line each.
        cost: What it costs, as a line for a person; None: its job has no flavor.
    """

    run: FlowRun
    warnings: tuple[str, ...]
    cost: str | None


def submit(
    client: SyncPrefectClient,
    job: TrainingJob,
    deployment: DeploymentResponse,
    data: dict[str, Any] | None = None,
    rerun_of: UUID | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Submitted:
    """Have a worker run a job.

    Args:
        client: How to reach the server.
        job: The job, its paths absolute.
        deployment: What says how it is started, and by the workers of which pool.
        data: What the run is given as the job, as somebody wrote it; absent: the whole job.
        rerun_of: The run whose job it is, with changes; absent: none.
        variables: Job variables, which go before the size that the flavor says.

    Raises:
        TrainjobError: If the deployment takes no job of this algorithm.
    """
    given = as_taken(deployment, job, job.model_dump(mode="json") if data is None else data)
    now = datetime.now(UTC)
    pool = pool_of(client, deployment)
    variables = merged(size_variables(pool, job.resources.flavor), variables)
    run = client.create_flow_run_from_deployment(
        deployment.id,
        parameters={"job": given},
        state=Scheduled(scheduled_time=now),
        # As `flows.training_job` names it when it starts, which may be later.
        name=f"{job.name}-{now:%Y%m%d-%H%M%S}",
        tags=sorted({*deployment.tags, *job.tags}),
        work_queue_name=deployment.work_queue_name,
        # A busy server may have made the run and not said so; then the client asks again.
        idempotency_key=uuid4().hex,
        job_variables=variables,
        labels={RERUN_OF_LABEL: str(rerun_of)} if rerun_of else None,
    )
    found = tuple(warnings(client, job, deployment, pool, variables))
    return Submitted(run, found, cost_text(job))


def warnings(
    client: SyncPrefectClient,
    job: TrainingJob,
    deployment: DeploymentResponse,
    pool: WorkPool | None,
    variables: Mapping[str, Any],
) -> Iterator[str]:
    """Yield what may keep the runs of a job from starting or from running well.

    Args:
        client: How to reach the server.
        job: The job.
        deployment: What starts it.
        pool: The pool of the deployment, as `pool_of` returns it.
        variables: The job variables of the run, beside those of the deployment.
    """
    yield from _pool_warnings(client, deployment, pool)
    env = environment_of(pool, deployment.job_variables, variables)
    yield from place_warnings(job, pool.type if pool else None, env)


def shared_checkpoints(job: TrainingJob) -> Iterator[str]:
    """Yield what to know of checkpoints that one run of a job leaves to the next."""
    if job.checkpoints is not None and "{run_id}" not in job.checkpoints.url:
        yield (
            f"every run goes on from what it finds at {job.checkpoints.url}, and trains nothing if "
            "the one before was done; write {run_id} into checkpoints.url for runs that begin anew"
        )


def deployment_for(
    client: SyncPrefectClient, job: TrainingJob, pool: str | None
) -> DeploymentResponse:
    """Return the deployment ``training-job/POOL``.

    Args:
        client: How to reach the server.
        job: The job; the pool of its flavor decides if none is named, else its device.
        pool: Name of the deployment, which is that of its pool.

    Raises:
        TrainjobError: If there is none; the message names those that there are.
    """
    flavor = job.resources.flavor
    if pool is None and flavor is not None and flavor.pool is not None:
        return deployment_named(client, flavor.pool, f"the pool of the flavor {flavor}")
    return deployment_on(client, job.resources.device, pool)


def deployment_on(
    client: SyncPrefectClient, device: Device, pool: str | None
) -> DeploymentResponse:
    """Return the deployment of a pool, or if none is named the one for a kind of device.

    Raises:
        TrainjobError: If there is none; the message names those that there are.
    """
    if pool is not None:
        return deployment_named(client, pool, "--pool")
    return deployment_named(client, _POOLS[device], f"resources.device: {device}")


def with_priority(
    client: SyncPrefectClient, deployment: DeploymentResponse, priority: Priority | None
) -> DeploymentResponse:
    """Return a deployment as if its runs went into the queue of a priority; None: as it is.

    Raises:
        TrainjobError: If its pool has no such queue: Prefect would make one, to be served last.
    """
    if priority is None:
        return deployment
    queue = QUEUES[priority]
    try:
        client.read_work_queue_by_name(queue, work_pool_name=deployment.work_pool_name)
    except ObjectNotFound as error:
        raise TrainjobError(
            f"asked for the priority {priority!r}, found no queue {queue!r} in the work pool "
            f"{deployment.work_pool_name!r}; make those of our pools by `make register`"
        ) from error
    return deployment.model_copy(update={"work_queue_name": queue})


def deployment_named(client: SyncPrefectClient, name: str, why: str) -> DeploymentResponse:
    """Return the deployment ``training-job/NAME``.

    Args:
        client: How to reach the server.
        name: Its name.
        why: What asks for it, for the message.

    Raises:
        TrainjobError: If there is none; the message names those that there are.
    """
    found = find_deployment(client, name)
    if found is not None:
        return found
    known = ", ".join(deployment.name for deployment in deployments(client)) or "none"
    raise TrainjobError(
        f"asked for the deployment '{FLOW}/{name}' ({why}), found: {known}; give --pool with "
        "one of these, or register those of prefect.yaml by `make register`"
    )


def find_deployment(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    """Return the deployment ``training-job/NAME``; None if there is none.

    Raises:
        TrainjobError: If no deployment can have the name.
    """
    try:
        return client.read_deployment_by_name(f"{FLOW}/{deployment_name(name)}")
    except ObjectNotFound:
        return None


def deployment_name(text: str) -> str:
    """Return the name of a deployment that was given as ``NAME`` or ``training-job/NAME``.

    Raises:
        TrainjobError: If no deployment can have the name.
    """
    name = text.removeprefix(f"{FLOW}/")
    if not name or any(character in name for character in BANNED_CHARACTERS):
        raise TrainjobError(
            f"asked for the deployment {text!r}, found a name that no deployment can have; give "
            f"one without {' '.join(BANNED_CHARACTERS)}, or '{FLOW}/' and such a one"
        )
    return name


def deployment_of(client: SyncPrefectClient, run: FlowRun) -> DeploymentResponse | None:
    """Return what a run was started from; None if nothing, or if that is gone."""
    return None if run.deployment_id is None else _deployment(client, run.deployment_id)


def deployments(client: SyncPrefectClient) -> list[DeploymentResponse]:
    """Return all deployments of training jobs, by name."""
    flow = FlowFilter(name=FlowFilterName(any_=[FLOW]))
    found = client.read_deployments(flow_filter=flow)
    return sorted(found, key=lambda deployment: deployment.name)


def pool_of(client: SyncPrefectClient, started: DeploymentResponse | FlowRun) -> WorkPool | None:
    """Return the pool whose workers start a run or those of a deployment; None: there is none."""
    if started.work_pool_name is None:
        return None
    try:
        return client.read_work_pool(started.work_pool_name)
    except ObjectNotFound:
        return None


def _pool_warnings(
    client: SyncPrefectClient, deployment: DeploymentResponse, pool: WorkPool | None
) -> Iterator[str]:
    """Yield why no worker would start a run of a deployment now."""
    name = deployment.work_pool_name
    if name is None:
        yield f"the deployment {deployment.name!r} has no work pool, so no worker starts its runs"
        return
    if pool is None:
        yield f"the work pool {name!r} does not exist: create it, by `make register`"
        return
    if pool.is_paused:
        yield f"the work pool {name!r} is paused: resume it, by `prefect work-pool resume {name}`"
    workers = client.read_workers_for_work_pool(name)
    if not any(worker.status == WorkerStatus.ONLINE for worker in workers):
        yield (
            f"no worker of the pool {name!r} is online, so the run waits; start one, in a checkout "
            "of trainjob, by `TRAINJOB_HOME=$PWD python -m prefect worker start "
            f"--install-policy never --pool {name}`"
        )


def _deployment(client: SyncPrefectClient, deployment_id: UUID) -> DeploymentResponse | None:
    try:
        return client.read_deployment(deployment_id)
    except ObjectNotFound:
        return None
