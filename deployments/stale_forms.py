"""Deployments that commands of `flows` made before an upgrade: told, not touched."""

from collections.abc import Iterator
from typing import Any

from prefect.client.orchestration import SyncPrefectClient

from deployments.changes import Change
from deployments.flow_deployments import keys_in_file
from flows.runs import FLOW
from flows.schedules import MADE_FROM_ALGORITHM, MADE_HERE
from flows.submitting import deployments

_COMMANDS = {MADE_HERE: "schedule", MADE_FROM_ALGORITHM: "algorithm deploy"}


def stale_forms(client: SyncPrefectClient) -> Iterator[Change]:
    """Yield the deployments whose form has other fields than that of prefect.yaml's now has."""
    found = deployments(client)
    of_file = keys_in_file()
    current = [
        _fields(known.parameter_openapi_schema)
        for known in found
        if (known.name, known.entrypoint) in of_file
    ]
    for deployment in found:
        commands = [command for tag, command in _COMMANDS.items() if tag in deployment.tags]
        if commands and _fields(deployment.parameter_openapi_schema) not in current:
            yield Change(
                "left",
                f"deployment {FLOW}/{deployment.name}",
                "its form is of another version; make it anew, by the "
                f"`python -m flows {commands[0]}` that made it",
            )


def _fields(form: dict[str, Any] | None) -> dict[str, list[str]]:
    """Return the names of all fields; what an algorithm narrows about them is its own."""
    definitions: dict[str, Any] = (form or {}).get("definitions", {})
    return {name: sorted(model.get("properties", {})) for name, model in definitions.items()}
