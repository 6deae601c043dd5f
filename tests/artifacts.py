"""What a run has left in Prefect."""

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact


def artifacts_of(run_id: str) -> dict[str, Artifact]:
    """Return the artifacts of a run by their keys, each of which is there once."""
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=of_run)
    by_key = {str(artifact.key): artifact for artifact in found}
    assert len(by_key) == len(found), "an artifact is there twice"
    return by_key
