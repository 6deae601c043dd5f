"""The saved settings of a store, against a real Prefect server."""

import asyncio
import dataclasses

import pytest
from prefect.client.orchestration import get_client
from pydantic import SecretStr

from blocks.object_store import ObjectStore, load_settings
from trainjob.errors import JobError
from trainjob.storage.settings import StoreSettings

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def lab_store() -> ObjectStore:
    block = ObjectStore(
        endpoint_url="https://obs.example.com",
        region="cn-north-4",
        access_key="an-access-key",
        secret_key=SecretStr("a-secret-key"),
        addressing_style="virtual",
    )
    block.save("lab-store", overwrite=True)
    return block


def test_a_saved_store_is_loaded_with_its_secrets(lab_store):
    settings = load_settings("lab-store")

    assert settings == StoreSettings(
        endpoint_url="https://obs.example.com",
        region="cn-north-4",
        access_key="an-access-key",
        secret_key="a-secret-key",
        addressing_style="virtual",
    )


def test_a_store_is_loaded_while_a_loop_runs_in_the_same_thread(lab_store):
    async def inside() -> StoreSettings:
        return load_settings("lab-store")

    assert asyncio.run(inside()).region == "cn-north-4"


def test_an_unknown_store_names_the_known_ones_and_how_to_make_one(lab_store):
    with pytest.raises(JobError) as caught:
        load_settings("lap-store")

    (problem,) = caught.value.problems
    assert problem.field == "store"
    assert "'lap-store'" in problem.asked
    assert "'lab-store'" in problem.found
    assert ".save('lap-store')" in problem.do
    assert "a-secret-key" not in str(caught.value)


def test_a_store_of_a_server_that_never_had_one_is_a_problem_of_the_job(lab_store):
    with get_client(sync_client=True) as client:
        block_type = client.read_block_type_by_slug("object-store")
        client.delete_block_type(block_type.id)

    with pytest.raises(JobError, match="found no saved store"):
        load_settings("lab-store")


def test_without_a_name_the_environment_is_used(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-the-environment")

    assert load_settings(None).access_key == "from-the-environment"


def test_the_form_explains_every_field_and_hides_the_secrets():
    fields = ObjectStore.model_json_schema()["properties"]

    assert set(fields) == {field.name for field in dataclasses.fields(StoreSettings)}
    assert all(field.get("description") for field in fields.values())
    assert "'password'" not in str(fields["access_key"])
    assert "'password'" in str(fields["secret_key"])
    assert ObjectStore.get_block_type_slug() == "object-store"


def test_fields_that_a_form_left_empty_are_absent():
    block = ObjectStore(endpoint_url="", secret_key=SecretStr(""), access_key="")

    assert block.to_settings() == StoreSettings()


def test_secrets_are_not_shown_when_a_block_is_printed(lab_store):
    assert "a-secret-key" not in repr(lab_store)
    assert "a-secret-key" not in repr(lab_store.to_settings())
