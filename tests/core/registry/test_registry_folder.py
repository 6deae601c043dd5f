"""The folder of saved versions: none is ever lost, changed or half there."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.waiting import PATIENCE_S, wait_until
from trainjob.errors import StoreError
from trainjob.registry.folder import FolderPlace, registry_of_machine
from trainjob.registry.records import Reference, RegistryError, RunOrigin, SavedDataset, SavedModel
from trainjob.registry.registry import Registry

ROOT = Path(__file__).parents[3]
FINGERPRINT = "sha256:" + "0" * 64
ADD_MANY = """\
import sys
from pathlib import Path
from trainjob.registry.folder import FolderPlace
from trainjob.registry.records import SavedDataset
from trainjob.registry.registry import Registry
registry = Registry(FolderPlace(Path(sys.argv[1])))
print("ready", flush=True)
sys.stdin.readline()
for i in range(int(sys.argv[3])):
    registry.add(SavedDataset(name="digits", version=1, created="now", is_read=False,
        url=f"{sys.argv[2]}/{i}", fingerprint="sha256:" + "0" * 64, description="x" * 4000))
"""


def dataset(name: str = "digits", **fields) -> SavedDataset:
    values = {"url": "/data", "fingerprint": FINGERPRINT, "is_read": True, "created": "now"}
    return SavedDataset(name=name, version=1, **values | fields)


def model(**fields) -> SavedModel:
    values = {"url": "/net", "fingerprint": FINGERPRINT, "is_read": True, "created": "now"}
    return SavedModel(name="net", version=1, **values | fields)


def delete(registry: Registry, record: SavedDataset) -> None:
    registry.delete("dataset", record.name, record.version)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(FolderPlace(tmp_path / "registry"))


def adding(root: Path, mark: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ADD_MANY, str(root), mark, str(count)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_was_saved_is_found_as_it_was(registry) -> None:
    saved = registry.add(
        dataset(description="Ziffern: 1e-3, no, 数字", format="2026-11-21", is_split=False)
    )

    assert registry.find("dataset", Reference("digits", 1)) == saved
    assert saved.version == 1


def test_a_name_alone_is_its_latest_version(registry) -> None:
    for i in range(11):
        registry.add(dataset(url=f"/data/{i}"))

    for text in ("digits", "digits@latest", "digits@11"):
        assert str(registry.find("dataset", Reference.parse(text))) == "digits@11"
    assert registry.find("dataset", Reference.parse("digits@2")).url == "/data/1"


@pytest.mark.parametrize("text", ["", "@1", "a@", "a@0", "a@v1", "a@1@2", "../a@1", "-a", "a\n@1"])
def test_what_is_no_reference_is_refused(text) -> None:
    with pytest.raises(RegistryError, match=r"asked for NAME, NAME@3 or NAME@latest, found"):
        Reference.parse(text)


def test_a_version_that_is_not_there_is_told_with_those_that_are(registry) -> None:
    registry.add(dataset())
    registry.add(dataset())

    with pytest.raises(RegistryError) as raised:
        registry.find("dataset", Reference("digits", 3))

    assert str(raised.value) == (
        "asked for the saved dataset 'digits@3', found only digits@1, digits@2; "
        "name one of these, or register a new version"
    )


def test_a_name_that_is_not_there_is_told_with_those_that_are(registry) -> None:
    registry.add(dataset("letters"))

    with pytest.raises(RegistryError) as raised:
        registry.find("dataset", Reference("digits"))

    assert "'digits@latest', found only letters in" in str(raised.value)
    assert "register it with `python -m flows dataset register digits ...`" in str(raised.value)


def test_the_number_of_a_deleted_version_is_not_given_again(registry) -> None:
    registry.add(dataset())
    last = registry.add(dataset())

    delete(registry, last)

    assert str(registry.find("dataset", Reference("digits"))) == "digits@1"
    assert str(registry.add(dataset())) == "digits@3"
    with pytest.raises(RegistryError, match=r"found only digits@1, digits@3"):
        registry.find("dataset", Reference("digits", 2))


def test_a_number_whose_file_somebody_took_away_is_not_given_again(registry) -> None:
    for _ in range(3):
        registry.add(dataset())
    for number in (2, 3):
        (Path(str(registry.place)) / "dataset" / "digits" / f"{number}.yaml").unlink()

    assert str(registry.add(dataset())) == "digits@4"


def test_a_number_of_an_older_registry_is_known_as_given(registry) -> None:
    registry.add(dataset())
    (Path(str(registry.place)) / "dataset" / "digits" / ".given-1").unlink()

    assert str(registry.add(dataset())) == "digits@2"


def test_a_broken_version_can_be_deleted_and_its_number_is_not_given_again(registry) -> None:
    version = registry.add(dataset())
    (Path(str(registry.place)) / "dataset" / "digits" / "1.yaml").write_text("")

    delete(registry, version)

    assert registry.survey("dataset", "digits").broken == []
    assert str(registry.add(dataset())) == "digits@2"


def test_a_version_whose_values_were_changed_by_hand_is_refused(registry) -> None:
    registry.add(dataset(description="the first"))
    file = Path(str(registry.place)) / "dataset" / "digits" / "1.yaml"
    file.write_text(file.read_text().replace("url: /data", "url: /other"))

    with pytest.raises(RegistryError) as raised:
        registry.find("dataset", Reference("digits", 1))

    assert str(raised.value) == (
        f"asked for the saved dataset digits@1 in {registry.place}, found other values than were "
        "saved; restore it from a backup, or `python -m flows dataset delete digits@1 --force`"
    )


def test_a_version_that_was_saved_before_values_had_a_digest_is_read(registry) -> None:
    saved = registry.add(dataset())
    file = Path(str(registry.place)) / "dataset" / "digits" / "1.yaml"
    values = yaml.safe_load(file.read_text())
    assert values.pop("values_sha256")
    file.write_text(yaml.safe_dump(values))

    assert registry.find("dataset", Reference("digits", 1)) == saved


def test_numbers_and_texts_of_every_form_are_those_that_were_saved(registry) -> None:
    metrics = {"a": 1e-05, "b": 1e22, "c": -0.0, "d": 3.0, "e": 0.1 + 0.2}
    texts = "2026-11-21\r\n no: 1e3\x85\u2028 🙂 \t"

    saved = registry.add(model(metrics=metrics, description=texts))

    assert registry.find("model", Reference("net", 1)) == saved


def test_a_name_whose_versions_are_all_deleted_is_not_there(registry) -> None:
    delete(registry, registry.add(dataset()))

    assert registry.survey("dataset").records == []
    with pytest.raises(RegistryError, match="found no saved dataset"):
        registry.find("dataset", Reference("digits"))


def test_users_of_a_version_are_those_that_were_made_from_it(registry) -> None:
    first, second = registry.add(dataset()), registry.add(dataset())
    run = RunOrigin(run_id="r", state="Completed", used=["dataset digits@1"])
    values = {"url": "/m", "fingerprint": FINGERPRINT, "is_read": True, "created": "now"}
    registry.add(SavedModel(name="net", version=1, run=run, **values))

    assert [str(model) for model in registry.users(first).records] == ["net@1"]
    assert registry.users(second).records == []


def test_two_processes_that_save_at_once_lose_no_version(registry) -> None:
    processes = [adding(Path(str(registry.place)), mark, 40) for mark in ("/a", "/b")]

    for process in processes:
        process.communicate("go\n", timeout=PATIENCE_S)

    versions = registry.survey("dataset", "digits").records
    assert [process.returncode for process in processes] == [0, 0]
    assert [version.version for version in versions] == list(range(1, 81))
    wanted = [f"{mark}/{i}" for mark in ("/a", "/b") for i in range(40)]
    assert sorted(version.url for version in versions) == sorted(wanted)


def test_a_process_that_is_killed_while_it_saves_leaves_whole_versions_only(registry) -> None:
    process = adding(Path(str(registry.place)), "/a", 100_000)
    folder = Path(str(registry.place)) / "dataset" / "digits"
    assert process.stdin
    process.stdin.write("go\n")
    process.stdin.flush()
    wait_until((folder / "20.yaml").exists)

    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)

    versions = registry.survey("dataset", "digits").records
    assert [version.version for version in versions] == list(range(1, len(versions) + 1))
    # The number that it was about to use may be lost, and none is given twice.
    assert registry.add(dataset()).version - len(versions) in (1, 2)


def test_what_a_killed_process_left_is_removed_later_and_nothing_else(registry) -> None:
    registry.add(dataset())
    folder = Path(str(registry.place)) / "dataset" / "digits"
    names = [f".{'0' * 32}.part", f".{'1' * 32}.part", "notes.part", "notes.txt"]
    for name in names:
        (folder / name).write_text("half")
    for name in (names[0], *names[2:]):
        os.utime(folder / name, (0, 0))

    registry.add(dataset())

    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [".given-2", "1.yaml", "2.yaml", *names[1:]]
    )


@pytest.mark.parametrize("text", ["", "kind: dataset\n", "a: 1"])
def test_a_version_that_was_changed_by_hand_is_named(registry, text) -> None:
    registry.add(dataset())
    (Path(str(registry.place)) / "dataset" / "digits" / "1.yaml").write_text(text)

    with pytest.raises(RegistryError, match=rf"dataset digits@1 in {registry.place}, found what"):
        registry.find("dataset", Reference("digits"))


@pytest.mark.parametrize("text", ["{", "kind: ["])
def test_a_file_that_is_no_yaml_is_named(registry, text) -> None:
    registry.add(dataset())
    file = Path(str(registry.place)) / "dataset" / "digits" / "1.yaml"
    file.write_text(text)

    with pytest.raises(RegistryError, match=rf"a saved version in '{file}'"):
        registry.find("dataset", Reference("digits"))


def test_a_file_of_another_version_is_refused(registry) -> None:
    registry.add(dataset())
    file = Path(str(registry.place)) / "dataset" / "digits" / "1.yaml"
    file.with_name("7.yaml").write_text(file.read_text())

    with pytest.raises(RegistryError, match="found the dataset digits@1"):
        registry.find("dataset", Reference("digits", 7))


def test_a_folder_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "registry").write_text("a file")

    with pytest.raises(StoreError, match=f"{tmp_path}/registry/dataset/digits/1.yaml: "):
        Registry(FolderPlace(tmp_path / "registry")).add(dataset())


def test_a_version_is_a_file_that_people_can_read(registry) -> None:
    registry.add(dataset(description="Handwritten digits"))

    file = Path(str(registry.place)) / "dataset" / "digits" / "1.yaml"

    assert yaml.safe_load(file.read_text())["description"] == "Handwritten digits"


def test_the_registry_of_a_machine_is_where_the_environment_says(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path))

    assert str(registry_of_machine().place) == str(tmp_path)


def break_version(registry: Registry, number: int, text: str = "") -> None:
    (Path(str(registry.place)) / "dataset" / "digits" / f"{number}.yaml").write_text(text)


def test_a_broken_version_keeps_no_other_from_being_found(registry) -> None:
    for _ in range(3):
        registry.add(dataset())
    break_version(registry, 2)

    found = registry.survey("dataset", "digits")

    assert registry.find("dataset", Reference("digits", 1)).version == 1
    assert registry.find("dataset", Reference("digits")).version == 3
    assert [record.version for record in found.records] == [1, 3]
    assert "the saved dataset digits@2" in str(found.broken[0])
    with pytest.raises(RegistryError, match="found only digits@1, digits@3; name one"):
        registry.find("dataset", Reference("digits", 9))


def test_a_name_whose_latest_version_is_broken_is_not_an_older_one(registry) -> None:
    registry.add(dataset())
    registry.add(dataset())
    break_version(registry, 2)

    with pytest.raises(RegistryError, match="the saved dataset digits@2"):
        registry.find("dataset", Reference("digits"))


def test_what_is_wrong_in_a_version_is_told_with_its_place(registry) -> None:
    saved = registry.add(dataset()).model_dump(mode="json")
    break_version(registry, 1, yaml.safe_dump(saved | {"num_files": "many"}))

    with pytest.raises(RegistryError, match="num_files: 'many' in place of a valid integer"):
        registry.find("dataset", Reference("digits", 1))


def test_a_date_that_is_none_is_a_broken_version(registry) -> None:
    registry.add(dataset())
    break_version(registry, 1, "created: 2026-13-45\n")

    with pytest.raises(RegistryError, match="a saved version in"):
        registry.find("dataset", Reference("digits", 1))
