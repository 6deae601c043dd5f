"""Saved versions as blocks of a real Prefect server: the same promises as of the folder."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from blocks.saved_versions import BlockPlace, SavedDatasetBlock
from flows.__main__ import main
from flows.training_job import training_job
from tests.jobs import make_job
from trainjob.errors import StoreUnavailable
from trainjob.job import TrainingJob
from trainjob.registry.data import DataSource
from trainjob.registry.file_list import listed_files
from trainjob.registry.records import Reference, RegistryError, SavedDataset
from trainjob.registry.register import register_dataset
from trainjob.registry.registry import Registry

FINGERPRINT = "sha256:" + "0" * 64


def dataset(name: str = "digits", **fields) -> SavedDataset:
    values = {"url": "/data", "fingerprint": FINGERPRINT, "is_read": True, "created": "now"}
    return SavedDataset(name=name, version=1, **values | fields)


def delete(registry: Registry, record: SavedDataset) -> None:
    registry.delete("dataset", record.name, record.version)


def names_in(registry: Registry) -> list[str]:
    return [record.name for record in registry.survey("dataset", newest=True).records]


@pytest.fixture
def registry(prefect_server: str) -> Iterator[Registry]:
    """A registry in the blocks of the server, which is empty again afterwards."""
    yield Registry(BlockPlace())
    with get_client(sync_client=True) as client:
        for slug in ("saved-algorithm", "saved-dataset", "saved-model", "saved-files"):
            for document in client.read_block_documents_by_type(slug) if _has(client, slug) else ():
                client.delete_block_document(document.id)
        for variable in client.read_variables():
            client.delete_variable_by_name(variable.name)


def _has(client, slug: str) -> bool:
    return any(known.slug == slug for known in client.read_block_types())


def test_what_was_saved_as_a_block_is_found_as_it_was(registry) -> None:
    saved = registry.add(dataset(description="Ziffern: 数字", is_split=False))

    assert registry.find("dataset", Reference("digits", 1)) == saved
    assert names_in(registry) == ["digits"]
    assert registry.survey("model").records == []


def test_a_version_is_a_block_of_its_own(registry) -> None:
    registry.add(dataset())
    registry.add(dataset(url="/other"))

    block: Any = SavedDatasetBlock.load("digits-v2")

    assert block.record["url"] == "/other"


def test_another_block_of_the_type_is_none_of_ours(registry) -> None:
    registry.add(dataset())
    SavedDatasetBlock(record={}).save("mine")

    assert names_in(registry) == ["digits"]


def test_a_block_that_somebody_emptied_is_named(registry) -> None:
    registry.add(dataset())
    SavedDatasetBlock(record={}).save("digits-v1", overwrite=True)

    with pytest.raises(RegistryError, match="dataset digits@1 in the blocks of Prefect, found"):
        registry.find("dataset", Reference("digits"))


def test_a_block_that_somebody_changed_is_refused(registry) -> None:
    registry.add(dataset(description="1e-5"))
    block: Any = SavedDatasetBlock.load("digits-v1")
    SavedDatasetBlock(record=block.record | {"url": "/other"}).save("digits-v1", overwrite=True)

    with pytest.raises(RegistryError, match="Prefect, found other values than were saved; "):
        registry.find("dataset", Reference("digits"))


def test_the_number_of_a_deleted_block_is_not_given_again(registry) -> None:
    registry.add(dataset())

    delete(registry, registry.add(dataset()))

    assert str(registry.add(dataset())) == "digits@3"
    with pytest.raises(RegistryError, match="found only digits@1, digits@3; name one"):
        registry.find("dataset", Reference("digits", 2))


def test_the_number_of_a_block_that_somebody_deleted_is_not_given_again(registry) -> None:
    for _ in range(2):
        registry.add(dataset())
    with get_client(sync_client=True) as client:
        document = client.read_block_document_by_name("digits-v2", "saved-dataset")
        client.delete_block_document(document.id)

    assert str(registry.add(dataset())) == "digits@3"


def test_a_broken_block_can_be_deleted(registry) -> None:
    registry.add(dataset())
    SavedDatasetBlock(record={}).save("digits-v1", overwrite=True)

    registry.delete("dataset", "digits", 1)

    found = registry.survey("dataset", "digits")
    assert (found.records, found.broken) == ([], [])


def test_many_versions_are_listed_by_few_requests(registry, monkeypatch) -> None:
    for i in range(12):
        registry.add(dataset(f"digits-{i % 3}"))
    requests: list[str] = []
    send = httpx.Client.send

    def counting(self, request, **how):
        # In another thread, a run of an earlier test may still tell its end.
        if threading.current_thread() is threading.main_thread():
            requests.append(f"{request.method} {request.url.path}")
        return send(self, request, **how)

    monkeypatch.setattr(httpx.Client, "send", counting)

    assert len(registry.survey("dataset").records) == 12
    assert names_in(registry) == ["digits-0", "digits-1", "digits-2"]

    of_blocks = [request for request in requests if "block" in request]
    assert of_blocks == ["GET /api/block_types/slug/saved-dataset/block_documents"] * 2
    assert len(requests) <= 4  # Prefect's client asks for the server's version, too


def test_a_version_in_a_block_lists_its_files(registry, tmp_path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("a")

    saved = register_dataset(registry, "digits", DataSource(str(tmp_path / "data")), None)
    again = register_dataset(registry, "digits", DataSource(str(tmp_path / "data")), None)

    assert [file.path for file in listed_files(registry, saved)] == ["a.txt"]
    assert again.version == 2
    with pytest.raises(RegistryError, match="the files of the saved dataset digits@1 in the bl"):
        listed_files(registry, dataset())


def test_two_that_save_blocks_at_once_lose_no_version(registry) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: registry.add(dataset(url=f"/{i}")), range(12)))

    versions = registry.survey("dataset", "digits").records
    assert [version.version for version in versions] == list(range(1, 13))
    assert {version.url for version in versions} == {f"/{i}" for i in range(12)}


@pytest.mark.parametrize("name", ["Digits", "digits_2"])
def test_a_name_that_no_block_can_have_is_refused(registry, name) -> None:
    with pytest.raises(RegistryError, match="other characters than small letters, digits and -"):
        registry.add(dataset(name))


def test_a_server_that_does_not_answer_may_be_asked_again() -> None:
    nowhere = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    asked = "asked Prefect's server for saved versions"

    with temporary_settings(nowhere), pytest.raises(StoreUnavailable, match=asked):
        BlockPlace().versions("dataset")


def test_a_job_that_was_read_needs_no_answer_of_the_server(tmp_path) -> None:
    channel = {"name": "data_url", "dataset": "digits@1", "url": "/data", "expect": FINGERPRINT}
    nowhere = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}

    with temporary_settings(nowhere):
        job = TrainingJob.parse(
            make_job(tmp_path, inputs=[channel]), registry=Registry(BlockPlace())
        )

    assert job.saved_versions == ["dataset digits@1"]


def test_a_run_takes_its_dataset_from_a_block(registry, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("TRAINJOB_REGISTRY", "prefect")
    job: Any = make_job(tmp_path, inputs=[{"name": "data_url", "dataset": "digits"}])
    assert main(["dataset", "register", "digits", str(tmp_path / "data")]) == 0

    report = training_job(job)

    assert report.used == ("dataset digits@1",)
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == 42


def test_check_asks_the_server_for_the_versions(registry, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("TRAINJOB_REGISTRY", "prefect")
    registry.add(dataset())
    file = Path(tmp_path / "job.yaml")
    job = make_job(tmp_path, inputs=[{"name": "data_url", "dataset": "digits@2"}])
    file.write_text(yaml.safe_dump(job))

    assert main(["check", str(file)]) == 2

    assert "found only digits@1; name one of these" in capsys.readouterr().err
