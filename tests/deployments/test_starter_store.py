"""A saved store that the registration makes of AWS_* variables: once, then left to people."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import BlockDocument
from pydantic import SecretStr

from blocks.object_store import ObjectStore, load_settings
from deployments.register import main, register
from deployments.starter_blocks import register_store
from deployments.work_pools import PoolSpec
from tests.pools import delete_pools
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
        for document in stores_on(client):
            client.delete_block_document(document.id)


def stores_on(client: SyncPrefectClient) -> list[BlockDocument]:
    """Return the saved stores; to ask by the type is an error where nobody has saved one yet."""
    documents = client.read_block_documents()
    return [doc for doc in documents if doc.block_type and doc.block_type.slug == "object-store"]


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


def test_a_store_that_wants_the_bucket_in_its_host_is_saved_so(client: SyncPrefectClient) -> None:
    register_store(client, "lab", force=False)

    assert load_settings("lab").addressing_style == "virtual"


def test_what_the_variables_do_not_say_stays_as_a_person_has_set_it(
    client: SyncPrefectClient,
) -> None:
    own: Any = {
        "addressing_style": "path",
        "checksums": "when_supported",
        "ca_bundle": Path("/lab.pem"),
    }
    mine = replace(StoreSettings.from_env(), **own)
    ObjectStore(**vars(mine)).save("lab")

    again = register_store(client, "lab", force=False)
    forced = register_store(client, "lab", force=True)

    assert [(change.verb, change.why) for change in (again, forced)] == [("left", "")] * 2
    assert load_settings("lab") == mine


def test_new_keys_of_a_store_replace_all_of_the_old_ones(client: SyncPrefectClient) -> None:
    old: Any = {"access_key": "old", "session_token": "old", "checksums": "when_supported"}
    ObjectStore(**vars(replace(StoreSettings.from_env(), **old))).save("lab")

    register_store(client, "lab", force=True)

    expected = replace(StoreSettings.from_env(), checksums="when_supported")
    assert load_settings("lab") == expected


def test_another_endpoint_is_another_store_of_which_a_person_has_said_nothing(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_store(client, "lab", force=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:8333")

    register_store(client, "lab", force=True)

    assert load_settings("lab") == StoreSettings.from_env()
    assert load_settings("lab").addressing_style == "auto"


def test_a_store_that_cannot_be_saved_is_told_before_anything_is_registered(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete_pools(client)  # of other tests on the same server
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    with pytest.raises(TrainjobError, match="found no AWS_SECRET_ACCESS_KEY; set it"):
        list(register(client, [PoolSpec("cpu", "cpu")], {}, store="lab"))

    assert "cpu" not in [pool.name for pool in client.read_work_pools()]


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

    assert stores_on(client) == []


@pytest.mark.parametrize("name", ["Lab", "lab store", "lab/store", "", "lab_store"])
def test_a_name_that_no_block_can_have_is_refused(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--store", name])

    assert f"{name!r}; write lowercase letters, digits and dashes" in capsys.readouterr().err
