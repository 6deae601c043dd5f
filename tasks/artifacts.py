"""Write the artifacts of a run so that none is there twice."""

import re
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)


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
    known = known or _find(client, artifact)
    if known is None:
        return client.create_artifact(artifact).id
    # As `update_artifact` does, but without an event that holds the data once more.
    content = {"data": artifact.data, "description": artifact.description}
    client.request("PATCH", "/artifacts/{id}", json=content, path_params={"id": known})
    return known


def _find(client: SyncPrefectClient, artifact: ArtifactCreate) -> UUID | None:
    if artifact.key is None or artifact.flow_run_id is None:
        raise ValueError("an artifact that is found again has a key and a run")
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            key=ArtifactFilterKey(any_=[artifact.key]),
            flow_run_id=ArtifactFilterFlowRunId(any_=[artifact.flow_run_id]),
        ),
        limit=1,
    )
    return found[0].id if found else None
