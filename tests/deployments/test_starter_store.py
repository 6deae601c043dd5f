"""A saved store that the registration makes of AWS_* variables: once, then left to people."""

from collections.abc import Iterator

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from pydantic import SecretStr

from blocks.object_store import ObjectStore, load_settings
from deployments.register import main
from deployments.starter_blocks import register_store
from trainjob.errors import TrainjobError
from trainjob.storage.settings import StoreSettings

ENV = {
    "AWS_ENDPOINT_URL": "https://obs.cn-north-4.myhuaweicloud.com",
    "AWS_REGION": "cn-north-4",
    "AWS_ACCESS_KEY_ID": "lab-key",
    "AWS_SECRET_ACCESS_KEY": "not-for-everyone",
}


@pytest.fixture
def client(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """Give a client of a server without stores, and the variables of one."""
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    with get_client(sync_client=True) as client:
        yield client
        for document in client.read_block_documents_by_type("object-store"):
            client.delete_block_document(document.id)


def test_a_store_is_made_of_the_environment_and_then_left(client: SyncPrefectClient) -> None:
    first = register_store(client, "lab", force=False)
    second = register_store(client, "lab", force=False)

    assert [str(change) for change in (first, second)] == [
        "created  saved store 'lab'",
        "left     saved store 'lab'",
    ]
    assert load_settings("lab") == StoreSettings.from_env()


def test_a_store_that_a_person_changed_is_left_unless_forced(client: SyncPrefectClient) -> None:
    mine = ObjectStore(endpoint_url="https://mine.example.com", secret_key=SecretStr("mine"))
    mine.save("lab")

    left = register_store(client, "lab", force=False)
    kept = load_settings("lab")
    forced = register_store(client, "lab", force=True)

    assert (left.verb, left.why) == (
        "left",
        "it says something else than AWS_* of the environment; --force replaces it",
    )
    assert kept == mine.to_settings()
    assert forced.verb == "changed"
    assert load_settings("lab") == StoreSettings.from_env()


def test_a_store_that_is_there_needs_no_variables(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_store(client, "lab", force=False)
    for name in ENV:
        monkeypatch.delenv(name)

    again = register_store(client, "lab", force=True)

    assert again.verb == "left"


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_store_without_keys_is_refused(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delenv(missing)

    with pytest.raises(TrainjobError, match=f"'lab' of AWS_.*, found no {missing}; set it"):
        register_store(client, "lab", force=False)

    assert client.read_block_documents_by_type("object-store") == []


@pytest.mark.parametrize("name", ["Lab", "lab store", "lab/store", "", "lab_store"])
def test_a_name_that_no_block_can_have_is_refused(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--store", name])

    assert f"{name!r}; write lowercase letters, digits and dashes" in capsys.readouterr().err
