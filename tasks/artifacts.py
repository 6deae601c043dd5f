"""Write the artifacts of a run so that none is there twice."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

_MAX_IDLE_S = 2.0  # the server closes a connection that was idle for 5 s


@contextmanager
def brief_client(request_s: float) -> Iterator[SyncPrefectClient]:
    """Give a client for what is sent again and again: it asks once, and waits `request_s` at most.

    What is new in some seconds says more than the same sent again.
    """
    settings = {"timeout": request_s, "limits": httpx.Limits(keepalive_expiry=_MAX_IDLE_S)}
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(sync_client=True, httpx_settings=settings) as client,
    ):
        yield client


class RunArtifacts:
    """The artifacts of one run, found again by their keys if they are there already."""

    def __init__(self, job_name: str, flow_run_id: UUID, task_run_id: UUID) -> None:
        self._job_name = job_name
        self._flow_run_id = flow_run_id
        self._task_run_id = task_run_id
        self._ids: dict[str, UUID] = {}
        self._shown: dict[str, tuple[Any, str]] = {}

    def shows(self, kind: str, description: str) -> bool:
        """Tell whether the artifact was last written with this description."""
        return kind in self._shown and self._shown[kind][1] == description

    def write(
        self, client: SyncPrefectClient, kind: str, form: str, data: Any, description: str
    ) -> None:
        """Create or update an artifact, unless it shows just this already.

        Args:
            client: How to reach the server.
            kind: What it shows; begins its key.
            form: The type of artifact, which says how its page draws the data.
            data: What it shows.
            description: Markdown above it.
        """
        if self._shown.get(kind) == (data, description):
            return
        artifact = ArtifactCreate(
            key=artifact_key(self._job_name, kind),
            type=form,
            data=data,
            description=description,
            flow_run_id=self._flow_run_id,
            task_run_id=self._task_run_id,
        )
        # Whatever goes wrong: the next time it is looked for, so that none is there twice.
        self._ids[kind] = write_artifact(client, artifact, self._ids.pop(kind, None))
        self._shown[kind] = (data, description)


def artifact_key(job: str, kind: str = "job") -> str:
    """Return the key that the artifacts of a job have in common: letters, digits and dashes."""
    return f"{kind}-{re.sub('[^a-z0-9]+', '-', job.lower()).strip('-')}"


def write_artifact(
    client: SyncPrefectClient, artifact: ArtifactCreate, known: UUID | None = None
) -> UUID:
    """Create an artifact of a run, or update the one that its run has under this key.

    Whoever was interrupted may write again: a task that is tried once more, another process.

    Args:
        client: How to reach the server.
        artifact: What it shows; with a key and a run.
        known: Id of the artifact; None to look for it.

    Returns:
        Id of the artifact.
    """
    known = known or next(_found(client, artifact), None)
    if known is None:
        made = client.create_artifact(artifact).id
        # A busy server may have made one after whoever asked for it had given up.
        for other in _found(client, artifact):
            if other != made:
                with suppress(ObjectNotFound):
                    client.delete_artifact(other)
        return made
    # As `update_artifact` does, but without an event that holds the data once more.
    content = {"data": artifact.data, "description": artifact.description}
    client.request("PATCH", "/artifacts/{id}", json=content, path_params={"id": known})
    return known


def _found(client: SyncPrefectClient, artifact: ArtifactCreate) -> Iterator[UUID]:
    """Yield the ids of those that the run has under the key."""
    if artifact.key is None or artifact.flow_run_id is None:
        raise ValueError("an artifact that is found again has a key and a run")
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            key=ArtifactFilterKey(any_=[artifact.key]),
            flow_run_id=ArtifactFilterFlowRunId(any_=[artifact.flow_run_id]),
        ),
    )
    yield from (other.id for other in found)
