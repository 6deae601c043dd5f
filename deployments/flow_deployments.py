"""The deployments of prefect.yaml on the server, and what became of each."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.responses import DeploymentResponse

from deployments.changes import Change
from deployments.form_choices import offer_choices
from trainjob.errors import TrainjobError

HOME = Path(__file__).resolve().parent.parent

_HEARTBEAT_S = 180
"""The interval of a run that is given none (Prefect's default)."""

_COMPARED = {
    "description",
    "enforce_parameter_schema",
    "entrypoint",
    "job_variables",
    "parameter_openapi_schema",
    "parameters",
    "path",
    "pull_steps",
    "tags",
    "work_pool_name",
    "work_queue_name",
}
"""What prefect.yaml and the flows say; the rest is the server's own, such as times."""


def deploy_all(client: SyncPrefectClient) -> list[Change]:
    """Create or update every deployment of prefect.yaml.

    A schedule that a person has switched on or off stays so. So do one that a person has added, a
    pause, and a limit of runs.

    Raises:
        TrainjobError: If Prefect refuses a deployment; the message has Prefect's own.
    """
    for deployment in _deployments(client).values():
        _give_slugs(client, deployment)
    before = _deployments(client)
    # prefect.yaml is read by Prefect's own command, which is the only one that reads all of it.
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    # With the variable, Prefect would write its value here and now into the pull step, which is for
    # each worker to fill in with its own.
    env = {name: value for name, value in os.environ.items() if name != "TRAINJOB_HOME"}
    done = subprocess.run(command, cwd=HOME, env=env, capture_output=True, text=True, check=False)
    # First, also of those that were deployed before one was refused.
    after = _deployments(client)
    for key, deployment in after.items():
        if key in before:
            _keep_switches(client, before[key], deployment)
            _keep_pause_and_limit(client, before[key], deployment)
    not_offered = offer_choices(client, after.values())
    if done.returncode:
        raise TrainjobError(
            "asked Prefect to deploy prefect.yaml, found that it refused; "
            f"correct what it says:\n{done.stdout}{done.stderr}"
        )
    after = _deployments(client)
    changes = [_change(name, before.get(key), after[key]) for key, name in _names(client, after)]
    return [*changes, *not_offered]


def pools_in_file() -> set[str]:
    """Return the names of the work pools that deployments of prefect.yaml are on."""
    pools = ((deployment.get("work_pool") or {}).get("name") for deployment in _in_file())
    return {pool for pool in pools if pool is not None}


def keys_in_file() -> set[tuple[str, str | None]]:
    """Return name and entrypoint of the deployments of prefect.yaml; flows may share a name."""
    return {(deployment["name"], deployment["entrypoint"]) for deployment in _in_file()}


def heartbeat_in_file() -> int:
    """Return the longest interval of heartbeats, in seconds, that prefect.yaml gives its runs."""
    pools = [deployment.get("work_pool") or {} for deployment in _in_file()]
    envs = [(pool.get("job_variables") or {}).get("env") or {} for pool in pools]
    return max(int(env.get("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", _HEARTBEAT_S)) for env in envs)


def _in_file() -> list[dict[str, Any]]:
    return cast(
        list[dict[str, Any]], yaml.safe_load((HOME / "prefect.yaml").read_text())["deployments"]
    )


def _deployments(client: SyncPrefectClient) -> dict[UUID, DeploymentResponse]:
    """Return those of the server that prefect.yaml names, by their ids."""
    keys = keys_in_file()
    named = DeploymentFilter(name=DeploymentFilterName(any_=sorted({name for name, _ in keys})))
    found = client.read_deployments(deployment_filter=named)
    return {found.id: found for found in found if (found.name, found.entrypoint) in keys}


def _names(
    client: SyncPrefectClient, deployments: dict[UUID, DeploymentResponse]
) -> list[tuple[UUID, str]]:
    """Return the ids and full names, such as ``training-job/cpu``, in the order of the names."""
    flows = {
        flow_id: client.read_flow(flow_id).name
        for flow_id in {deployment.flow_id for deployment in deployments.values()}
    }
    named = ((key, f"{flows[d.flow_id]}/{d.name}") for key, d in deployments.items())
    return sorted(named, key=lambda pair: pair[1])


def _give_slugs(client: SyncPrefectClient, deployment: DeploymentResponse) -> None:
    """Give a slug to each schedule that a person has added, which has none if the UI made it.

    For one without a slug, `prefect deploy` (3.8.8) deletes all schedules and makes those of the
    file; if all have one, it leaves what the file does not name. A file may have such, too: then
    Prefect cannot know whose they are, and does as it does.
    """
    key = (deployment.name, deployment.entrypoint)
    [of_file] = [found for found in _in_file() if (found["name"], found["entrypoint"]) == key]
    if any("slug" not in schedule for schedule in of_file.get("schedules") or ()):
        return
    for schedule in deployment.schedules:
        if schedule.slug is None:
            client.request(  # `update_deployment_schedule` takes no slug
                "PATCH",
                "/deployments/{id}/schedules/{schedule_id}",
                path_params={"id": deployment.id, "schedule_id": schedule.id},
                json={"slug": str(schedule.id)},
            )


def _keep_switches(
    client: SyncPrefectClient, before: DeploymentResponse, after: DeploymentResponse
) -> None:
    """Switch the schedules as they were; `prefect deploy` puts them as the file has them."""
    switches = {schedule.slug: schedule.active for schedule in before.schedules}
    for schedule in after.schedules:
        active = switches.get(schedule.slug, schedule.active)
        if schedule.slug and active != schedule.active:
            client.update_deployment_schedule(after.id, schedule.id, active=active)


def _keep_pause_and_limit(
    client: SyncPrefectClient, before: DeploymentResponse, after: DeploymentResponse
) -> None:
    """Set what holds runs back as it was; `prefect deploy` removes it if the file says nothing."""
    kept: dict[str, Any] = {}
    if before.paused and not after.paused:
        kept["paused"] = True
    if before.global_concurrency_limit and not after.global_concurrency_limit:
        kept["concurrency_limit"] = before.global_concurrency_limit.limit
        kept["concurrency_options"] = before.concurrency_options
    if kept:
        client.update_deployment(after.id, DeploymentUpdate(**kept))


def _change(name: str, before: DeploymentResponse | None, after: DeploymentResponse) -> Change:
    what = f"deployment {name}"
    if before is None:
        return Change("created", what)
    old, new = _compared(before), _compared(after)
    changed = sorted(key for key in new if old[key] != new[key])
    return Change("changed", what, ", ".join(changed)) if changed else Change("left", what)


def _compared(deployment: DeploymentResponse) -> dict[str, Any]:
    # Those of the server come in the order in which they were changed.
    schedules = sorted(deployment.schedules, key=lambda schedule: schedule.slug or "")
    return {
        **deployment.model_dump(include=_COMPARED),
        "schedules": [(schedule.slug, schedule.schedule) for schedule in schedules],
    }
