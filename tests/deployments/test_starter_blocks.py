"""Flavors as blocks of a real server: made from the file, left to people, and read by jobs."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.client.schemas.objects import BlockDocument

from blocks.flavor import FlavorBlock
from blocks.saved_versions import BlockPlace, create_block
from deployments.register import _parser
from deployments.starter_blocks import _ADVICE, register_blocks, write_starter_flavors
from flows.__main__ import main
from tests.jobs import make_job
from trainjob.errors import JobError
from trainjob.job import TrainingJob
from trainjob.registry.registry import Registry

EXAMPLE = Path(__file__).parents[2] / "examples" / "flavors.yaml"
FLAVORS = "2c4g: {price_per_hour: 0}\nLab A100: {size: 32c256g A100*4, price_per_hour: 40}\n"


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """Give a client of a server whose flavors are deleted afterwards."""
    with get_client(sync_client=True) as client:
        yield client
        for document in documents(client).values():
            client.delete_block_document(document.id)


@pytest.fixture
def flavors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the platform."""
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path))
    file = tmp_path / "flavors.yaml"
    file.write_text(FLAVORS)
    return file


def documents(client: SyncPrefectClient) -> dict[str, BlockDocument]:
    return {
        str(document.name): document for document in client.read_block_documents_by_type("flavor")
    }


def registered(client: SyncPrefectClient, *, force: bool = False) -> list[str]:
    return [str(change) for change in register_blocks(client, force=force)]


def with_flavor(folder: Path, flavor: str) -> dict[str, object]:
    return make_job(folder) | {"resources": {"flavor": flavor}}


@pytest.mark.usefixtures("flavors")
def test_flavors_of_the_file_become_blocks_once(client: SyncPrefectClient) -> None:
    first = registered(client)
    made = documents(client)
    second = registered(client)

    assert first[2:] == ["created  flavor 2c4g", "created  flavor Lab A100 (32c256g A100*4)"]
    assert {line.split()[0] for line in second} == {"left"}
    assert documents(client) == made
    assert made["lab-a100"].data["price_per_hour"] == 40


@pytest.mark.usefixtures("flavors")
def test_a_flavor_that_a_person_changed_is_left_unless_forced(client: SyncPrefectClient) -> None:
    registered(client)
    by_hand = BlockDocumentUpdate(data={"price_per_hour": 38.0}, merge_existing_data=True)
    client.update_block_document(documents(client)["lab-a100"].id, by_hand)

    left = registered(client)
    kept = documents(client)["lab-a100"].data["price_per_hour"]
    forced = registered(client, force=True)

    assert left[-1].endswith(
        "block 'lab-a100' says something else than flavors.yaml; --force replaces it"
    )
    assert kept == 38
    assert forced[-1] == "changed  flavor Lab A100 (32c256g A100*4)"
    assert documents(client)["lab-a100"].data["price_per_hour"] == 40


@pytest.mark.usefixtures("flavors")
def test_a_job_finds_the_flavors_of_the_server(client: SyncPrefectClient, tmp_path: Path) -> None:
    registered(client)
    registry = Registry(BlockPlace())

    named = TrainingJob.parse(with_flavor(tmp_path / "a", "Lab A100"), registry=registry)
    sized = TrainingJob.parse(with_flavor(tmp_path / "b", "2C4G"), registry=registry)
    with pytest.raises(JobError) as raised:
        TrainingJob.parse(with_flavor(tmp_path / "c", "lab-b200"), registry=registry)

    assert (str(named.resources.flavor), named.resources.device) == (
        "Lab A100 (32c256g A100*4)",
        "cuda",
    )
    assert sized.resources.flavor
    assert sized.resources.flavor.price_per_hour == 0
    [problem] = raised.value.problems
    assert problem.found == "'lab-b200', and only 2c4g, Lab A100 there"
    assert "'the blocks of Prefect of the type Flavor'" in problem.asked


def test_a_new_platform_begins_with_the_flavors_of_the_example(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path / "new" / "registry"))
    file = tmp_path / "new" / "registry" / "flavors.yaml"
    assert _parser().parse_args(["--starter-flavors"]).starter_flavors

    first, lines = str(write_starter_flavors()), registered(client)

    assert first == f"created  {str(file)!r}: {_ADVICE}"
    assert file.read_bytes() == EXAMPLE.read_bytes()
    assert "created  flavor 2c4g" in lines
    assert documents(client).keys() >= {"2c4g", "lab-a100", "small"}
    # Why the advice is not to change the file alone.
    file.write_text(file.read_text().replace("price_per_hour: ", "price_per_hour: 1"))
    assert {line.split()[0] for line in registered(client)} == {"left"}
    assert "in the UI those of blocks" in first


def test_the_flavors_of_a_platform_are_not_replaced_by_those_of_the_example(flavors: Path) -> None:
    assert str(write_starter_flavors()) == f"left     {str(flavors)!r}"

    assert flavors.read_text() == FLAVORS


def test_any_two_names_become_two_blocks(client: SyncPrefectClient, flavors: Path) -> None:
    flavors.write_text("八卡机: 8c40g\n四卡机: 4c20g\nlab_a100: 2c8g\nlab-a100: 2c9g\n", "utf-8")

    first, second = registered(client), registered(client)

    assert [line.split()[0] for line in first[2:]] == ["created"] * 4
    assert {line.split()[0] for line in second} == {"left"}
    found = {document.data["called"] for document in documents(client).values()}
    assert found == {"八卡机", "四卡机", "lab_a100", "lab-a100"}


def test_a_flavor_that_two_blocks_have_is_told(client: SyncPrefectClient, tmp_path: Path) -> None:
    for name, price in (("a", 1.0), ("b", 9.0)):
        values = {"size": "2c4g", "called": "small", "price_per_hour": price}
        create_block(client, FlavorBlock, name, values)

    with pytest.raises(JobError) as raised:
        TrainingJob.parse(with_flavor(tmp_path, "small"), registry=Registry(BlockPlace()))

    [problem] = raised.value.problems
    assert "small: asked for a flavor once" in problem.found


def test_a_flavor_that_was_filled_in_wrongly_is_told(
    client: SyncPrefectClient, tmp_path: Path
) -> None:
    create_block(client, FlavorBlock, "big", {"size": "very big", "called": "big"})

    with pytest.raises(JobError) as raised:
        TrainingJob.parse(with_flavor(tmp_path, "big"), registry=Registry(BlockPlace()))

    [problem] = raised.value.problems
    assert "big.size: asked for a flavor as cores and GiB of memory" in problem.found


def test_the_flavors_of_the_server_are_listed(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    create_block(client, FlavorBlock, "by-form", {"size": "8c16g", "called": ""})
    monkeypatch.setenv("TRAINJOB_REGISTRY", "prefect")

    assert main(["flavor", "list", "--json"]) == 0

    [flavor] = json.loads(capsys.readouterr().out)["flavors"]
    assert (flavor["size"], flavor["name"]) == ("8c16g", None)
