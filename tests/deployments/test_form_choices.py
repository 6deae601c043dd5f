"""The forms offer what the platform has, beside the field for any text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client

from blocks.flavor import FlavorBlock
from blocks.object_store import ObjectStore
from blocks.saved_versions import create_block
from deployments.form_choices import offer_choices
from flows.training_job import training_job

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def offered(client: SyncPrefectClient) -> dict[str, list[dict[str, Any]]]:
    """Make a deployment of the flow, offer the choices, and return the forms of two fields."""
    flow_id = client.create_flow(training_job)
    schema = training_job.parameters.model_dump()
    key = client.create_deployment(flow_id, "choices", parameter_openapi_schema=schema)

    told = offer_choices(client, [client.read_deployment(key)])

    form = client.read_deployment(key).parameter_openapi_schema
    client.delete_deployment(key)
    assert form is not None
    models = form["definitions"]
    return {
        "told": [{"line": str(change)} for change in told],
        "flavor": models["Resources"]["properties"]["flavor"]["anyOf"],
        "store": models["TrainingJob"]["properties"]["store"]["anyOf"],
    }


def test_a_form_offers_flavors_and_stores_of_the_platform(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path))
    (tmp_path / "flavors.yaml").write_text("2c4g: {}\nlab-a100: {size: 32c256g A100*4}\n")
    ObjectStore(region="r").save("offered-store", overwrite=True)

    forms = offered(client)

    [flavors] = [form for form in forms["flavor"] if "enum" in form]
    [stores] = [form for form in forms["store"] if "enum" in form]
    assert flavors == {"title": "Choice", "type": "string", "enum": ["2c4g", "lab-a100"]}
    assert "offered-store" in stores["enum"]
    assert [forms[name][0].get("enum") for name in ("flavor", "store")] == [None, None]
    assert forms["told"] == []


def test_a_flavor_with_a_mistake_is_told_and_the_others_are_offered(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINJOB_REGISTRY", "prefect")
    blocks = [("good", {"size": "2c4g"}), ("big-one", {"size": "4 cores", "called": "big"})]
    for name, values in blocks:
        create_block(client, FlavorBlock, name, values)

    forms = offered(client)

    for document in client.read_block_documents_by_type("flavor"):
        client.delete_block_document(document.id)
    [flavors] = [form for form in forms["flavor"] if "enum" in form]
    [told] = forms["told"]
    assert flavors["enum"] == ["2c4g"]
    assert told["line"].startswith("left     flavor 'big': no job can name it, correct it in the b")
    assert "big.size: asked for a flavor as cores" in told["line"]


def test_a_platform_without_flavors_offers_none(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path))

    assert not [form for form in offered(client)["flavor"] if "enum" in form]
