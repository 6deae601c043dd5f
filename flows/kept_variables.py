"""Job variables that a rerun takes over from the run whose job it is.

What a person, a program or a schedule chose for that run belongs to it as its job does. What its
flavor said belongs to the flavor, and another one says it anew.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, WorkPool
from prefect.client.schemas.responses import DeploymentResponse

from flows.job_variables import fields_of, merged
from flows.pool_sizes import size_variables
from flows.submitting import deployment_of, pool_of
from trainjob.resources import Resources


def kept_variables(
    client: SyncPrefectClient,
    old: FlowRun,
    before: Resources | None,
    deployment: DeploymentResponse,
    after: Resources,
) -> tuple[dict[str, Any], list[str]]:
    """Return the job variables that a run has from the one whose job it is.

    Args:
        client: How to reach the server.
        old: The run whose job it is.
        before: What its job asked for; None: that is not known any more.
        deployment: What starts the new run.
        after: What its job asks for.

    Returns:
        The variables; and what is not taken over, as warnings.
    """
    pool, origin = pool_of(client, old), deployment_of(client, old)
    of_origin, of_run = (origin.job_variables if origin else {}) or {}, old.job_variables or {}
    was = size_variables(pool, before.flavor if before else None)
    chosen = _without(was, merged(of_origin, of_run))
    if (old.deployment_id, old.work_pool_name) != (deployment.id, deployment.work_pool_name):
        left = _without(deployment.job_variables or {}, chosen)
        why = f"the deployment {deployment.name!r} starts its runs otherwise"
        return {}, _left_behind(old, left, why)
    now = size_variables(pool, after.flavor)
    if before is not None and was == now:  # its price may be another
        return dict(of_run), []
    kept = {name: value for name, value in _without(was, of_run).items() if name not in now}
    # A schedule has the size of its flavor on its deployment, where it holds for this run, too.
    stale = {name for name in was if name in of_origin and of_origin[name] == was[name]}
    reset = _defaults(pool, stale - now.keys() - kept.keys())
    replaced = [name for name in _without(now, chosen) if name in now]
    return reset | kept, _left_behind(old, replaced, "its job has another flavor now")


def _without(known: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in variables.items()
        if name not in known or known[name] != value
    }


def _defaults(pool: WorkPool | None, names: Iterable[str]) -> dict[str, Any]:
    fields = fields_of(pool)
    return {name: fields[name]["default"] for name in names if "default" in fields[name]}


def _left_behind(old: FlowRun, names: Iterable[str], why: str) -> list[str]:
    # By names alone: a value may be nobody's business, such as of env.
    if not (text := ", ".join(sorted(names))):
        return []
    return [
        f"the job variables {text} of the run {old.name!r} are left behind, since {why}; give "
        "those that it needs by --job-variable"
    ]
