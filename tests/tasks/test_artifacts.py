"""The artifacts of a run: whoever writes one again changes the one that is there."""

from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact

from tasks.artifacts import write_artifact


@flow
def nothing() -> None:
    """Have runs."""


def test_an_artifact_that_is_written_again_is_there_once(prefect_server: str) -> None:
    with get_client(sync_client=True) as client:
        run, other = client.create_flow_run(nothing), client.create_flow_run(nothing)

        def write(data: str, run_id) -> object:
            artifact = ArtifactCreate(key="job-x", type="markdown", data=data, flow_run_id=run_id)
            return write_artifact(client, artifact)

        ids = [write("first", run.id), write("of another run", other.id), write("second", run.id)]

        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        [kept] = client.read_artifacts(artifact_filter=of_run)
    assert (kept.id, kept.data) == (ids[0], "second") == (ids[2], "second")
    assert ids[1] != ids[0]


def test_one_that_a_busy_server_makes_late_is_not_there_beside_it(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(nothing)
        late, wanted = (
            ArtifactCreate(key="job-x", type="markdown", data=data, flow_run_id=run.id)
            for data in ("of whoever has given up", "the last word")
        )
        look = client.read_artifacts

        def look_before_it_is_there(**of_run: Any) -> list[Artifact]:
            found = look(**of_run)
            monkeypatch.undo()
            client.create_artifact(late)
            return found

        monkeypatch.setattr(client, "read_artifacts", look_before_it_is_there)

        made = write_artifact(client, wanted)

        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        [kept] = client.read_artifacts(artifact_filter=of_run)
    assert (kept.id, kept.data) == (made, "the last word")
