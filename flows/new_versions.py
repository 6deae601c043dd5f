"""A dataset gets a new version: an event says so, and each job that waits for it is run.

The event is emitted by who registers the version, to the server that is configured. A job waits by
a deployment and an automation of it, which gives the run exactly the version that was registered.
`flows.registry_command` and `flows.schedules` are the callers.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.automations import AutomationCore, EventTrigger, Posture, RunDeployment
from prefect.events import Event, Resource
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.server_client import configured_server
from trainjob.errors import JobError, Problem, TrainjobError
from trainjob.jobfile import read_job_file
from trainjob.registry.records import Reference, RegistryError, SavedDataset
from trainjob.registry.references import UNRESOLVED

DATASET_VERSION_EVENT = "trainjob.dataset.version"
"""A dataset has a new version. Its resource is the dataset; the payload says which version."""

_VERSION_LABEL = "trainjob.dataset.version"

_OF_THE_EVENT = "{{ event.payload.reference }}"
"""Becomes ``NAME@VERSION`` when the server starts the run (Jinja)."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What starts a deployment.

    Attributes:
        dataset: Name of the dataset whose new versions do.
        is_active: Whether that was not switched off.
    """

    dataset: str
    is_active: bool


def announce_version(version: SavedDataset) -> str | None:
    """Tell the server that is configured of a new version.

    Returns:
        Why it could not be told; None if it was, or if no server is configured.
    """
    if not PREFECT_API_URL.value():
        return None
    event = Event(
        event=DATASET_VERSION_EVENT,
        resource=Resource(
            {
                "prefect.resource.id": _resource_of(version.name),
                "prefect.resource.name": version.name,
                _VERSION_LABEL: str(version.version),
            }
        ),
        payload={
            "reference": str(version),
            "name": version.name,
            "version": version.version,
            "description": version.description,
            "num_files": version.num_files,
            "size_bytes": version.size_bytes,
        },
    )
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), configured_server() as client:
            client.request("POST", "/events", json=[event.model_dump(mode="json")])
    except TrainjobError as error:
        return str(error)
    return None


def job_on_versions_of(path: str, job: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """Return a job that reads the latest version of a dataset wherever it is run.

    Args:
        path: The file of the job.
        job: What was read from it: in place of the name of the dataset, one version of it. Left
            unchanged.
        dataset: Its name.

    Raises:
        JobError: If no input of the job is the dataset, or one that is has a version of its own.
    """
    given = read_job_file(Path(path)).get("inputs") or []
    data = copy.deepcopy(dict(job))
    problems: list[Problem] = []
    found = False
    for index, channel in enumerate(given):
        if not _names(channel, dataset):
            continue
        found = True
        if channel.get("expect") or Reference.parse(channel["dataset"]).version is not None:
            asked = f"every new version of the dataset {dataset!r}"
            told = f"{channel['dataset']!r}" + (" with expect" if channel.get("expect") else "")
            do = f"write dataset: {dataset}, without a version and expect"
            problems.append(Problem(f"inputs[{index}].dataset", asked, told, do))
        data["inputs"][index] |= UNRESOLVED | {"dataset": dataset}
    if not found:
        asked = f"an input that is the dataset {dataset!r}"
        do = f"give one input dataset: {dataset} in place of a url"
        problems.append(Problem("inputs", asked, "none", do))
    if problems:
        raise JobError(path, problems)
    return data


def automation_of(
    deployment_id: UUID, name: str, dataset: str, job: dict[str, Any]
) -> AutomationCore:
    """Return the automation that runs a deployment when a dataset gets a new version.

    Args:
        deployment_id: What it runs, and with what it is deleted.
        name: Name of the deployment.
        dataset: Name of the dataset.
        job: The job of the deployment, as `job_on_versions_of` returns it.
    """
    return AutomationCore(
        name=f"trainjob: run {name} on a new version of {dataset}",
        description=f"Runs training-job/{name} when the dataset {dataset} gets a new version.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={DATASET_VERSION_EVENT},
            match={"prefect.resource.id": _resource_of(dataset)},
            # Once for each version: an event that met a locked database comes again (3.8.8).
            for_each={_VERSION_LABEL},
            within=timedelta(minutes=10),
        ),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=deployment_id,
                parameters={"job": _with_version_of_event(job, dataset)},
            )
        ],
        owner_resource=owner_of(deployment_id),
    )


def owner_of(deployment_id: UUID) -> str:
    """Return the resource that the automations of a deployment belong to."""
    return f"prefect.deployment.{deployment_id}"


def waiting_deployments(automations: Iterable[AutomationCore]) -> dict[UUID, Waiting]:
    """Return what the deployments wait for that such automations run, by their ids."""
    found: dict[UUID, Waiting] = {}
    for automation in automations:
        trigger = automation.trigger
        if isinstance(trigger, EventTrigger) and trigger.expect == {DATASET_VERSION_EVENT}:
            matched = str(trigger.model_dump(mode="json")["match"]["prefect.resource.id"])
            waiting = Waiting(matched.removeprefix(_resource_of("")), automation.enabled)
            actions = (item for item in automation.actions if isinstance(item, RunDeployment))
            found |= {item.deployment_id: waiting for item in actions if item.deployment_id}
    return found


def _resource_of(dataset: str) -> str:
    return f"trainjob.dataset.{dataset}"


def _names(channel: Any, dataset: str) -> bool:
    if not isinstance(channel, Mapping) or not isinstance(channel.get("dataset"), str):
        return False
    try:
        return Reference.parse(channel["dataset"]).name == dataset
    except RegistryError:  # the job could not have been read
        return False


def _with_version_of_event(job: dict[str, Any], dataset: str) -> dict[str, Any]:
    escaped: dict[str, Any] = _escaped(job)
    for channel in escaped["inputs"]:
        if channel["dataset"] == dataset:
            channel["dataset"] = _OF_THE_EVENT
    return escaped


def _escaped(value: Any) -> Any:
    """Return values of which the server's templates leave every text as it is."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, str) and ("{{" in value or "{%" in value):
        return "{{ " + json.dumps(value, ensure_ascii=False) + " }}"
    return value
