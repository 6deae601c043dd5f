"""Which deployments would look up a saved version when they start a run.

A job that was read has all of its versions and looks up nothing; that of a form which
`flows.algorithm_deployment` made, or of an edited deployment, has names alone. Asked by
`flows.registry_command` before a version is deleted.
"""

from collections.abc import Iterator
from typing import Any

from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.runs import FLOW
from flows.server_client import configured_server
from flows.submitting import deployments
from trainjob.registry.records import DATA_KINDS, Kind, Record, Reference, RegistryError


def deployments_that_name(version: Record, *, is_latest: bool) -> list[str]:
    """Return the deployments whose job names a version, as ``deployment FLOW/NAME``.

    Args:
        version: The version.
        is_latest: Whether its name alone means this version.

    Raises:
        TrainjobError: If a server is configured and does not tell.
    """
    if not PREFECT_API_URL.value():
        return []
    numbers: set[int | None] = {version.version, *([None] if is_latest else [])}
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), configured_server() as client:
        return [
            f"deployment {FLOW}/{deployment.name}"
            for deployment in deployments(client)
            for kind, text in _names_in(deployment.parameters.get("job"))
            if kind == version.kind and _means(text, version.name, numbers)
        ]


def _names_in(job: Any) -> Iterator[tuple[Kind, str]]:
    """Yield the saved versions that a job names without the rest of them."""
    if not isinstance(job, dict):
        return
    if isinstance(job.get("algorithm"), str):
        yield "algorithm", job["algorithm"]
    for channel in job.get("inputs") or ():
        if isinstance(channel, dict) and not channel.get("expect"):
            for kind in DATA_KINDS:
                if isinstance(channel.get(kind), str):
                    yield kind, channel[kind]


def _means(text: str, name: str, numbers: set[int | None]) -> bool:
    try:
        reference = Reference.parse(text)
    except RegistryError:
        return False
    return reference.name == name and reference.version in numbers
