"""A saved version that a deployment's jobs would look up is not deleted without a word."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.__main__ import main
from tests.jobs import make_job
from tests.submitting import cpu_deployment

ALGORITHM = "algorithm: {code: {url: code}, boot_file: train.py}\n"


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with cpu_deployment() as found:
        yield found


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions of an algorithm in a folder."""
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path / "registry"))
    make_job(tmp_path)
    (tmp_path / "algorithm.yaml").write_text(ALGORITHM)
    for _ in range(2):
        assert main(["algorithm", "register", "formed", str(tmp_path / "algorithm.yaml")]) == 0


@pytest.mark.usefixtures("registered")
def test_an_algorithm_that_a_form_uses_is_deleted_by_force_only(
    client: SyncPrefectClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["algorithm", "deploy", "formed", "--name", "form"]) == 0
    capsys.readouterr()

    assert main(["algorithm", "delete", "formed@1"]) == 0
    refused = main(["algorithm", "delete", "formed@2"])
    said = capsys.readouterr().err
    forced = main(["algorithm", "delete", "formed@2", "--force", "--json"])
    told = json.loads(capsys.readouterr().out)
    client.delete_deployment(client.read_deployment_by_name("training-job/form").id)

    assert (refused, forced) == (1, 0)
    assert said == (
        "asked for the algorithm 'formed@2' to be deleted, found the deployment "
        "'training-job/form', whose job names it; change or delete these first, or give --force\n"
    )
    assert told["used_by"] == ["deployment training-job/form"]


@pytest.mark.usefixtures("registered")
def test_a_name_without_a_number_is_the_latest_version(
    client: SyncPrefectClient, capsys: pytest.CaptureFixture[str]
) -> None:
    base = client.read_deployment_by_name("training-job/cpu")
    made = client.create_deployment(
        base.flow_id, "latest", parameters={"job": {"algorithm": "formed@latest"}}
    )

    older = main(["algorithm", "delete", "formed@1"])
    latest = main(["algorithm", "delete", "formed@2"])
    client.delete_deployment(made)

    assert (older, latest) == (0, 1)


@pytest.mark.usefixtures("registered")
def test_a_server_that_is_away_cannot_say_who_uses_an_algorithm(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        refused = main(["algorithm", "delete", "formed@2"])
        forced = main(["algorithm", "delete", "formed@2", "--force"])

    assert (refused, forced) == (1, 0)
    assert "found no word of the deployments that may name it: " in capsys.readouterr().err
