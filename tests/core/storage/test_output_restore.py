"""A run that goes on on another machine keeps the outputs that it wrote on the first."""

from pathlib import Path
from typing import Any

import pytest

from trainjob.errors import OutputNotEmpty
from trainjob.storage.output_mirror import OutputMirror
from trainjob.storage.output_restore import restore_outputs
from trainjob.storage.receipt import read_receipt, verify_receipt
from trainjob.storage.upload import upload_tree


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Any]:
    if request.param == "folder":
        return str(tmp_path / "store"), None
    s3 = request.getfixturevalue("s3")
    return f"s3://{s3.new_bucket()}/out/", s3.settings


def sync(folder: Path, place: tuple[str, Any], run_id: str = "run-1") -> None:
    mirror = OutputMirror(folder, place[0], place[1], run_id=run_id, label="out")
    mirror.push(is_final=True)


def test_the_upload_from_another_machine_has_the_files_of_both(
    tmp_path: Path, place: tuple[str, Any]
) -> None:
    url, settings = place
    sync(write(tmp_path / "first", one="1", both="old"), place)
    second, journal = tmp_path / "second", tmp_path / "journal.json"

    num_files = restore_outputs(url, second, settings, run_id="run-1", journal=journal, label="out")
    write(second, two="2", both="new")
    upload_tree(second, url, settings, run_id="run-1", facts={}, label="out", journal=journal)

    assert num_files == 2
    assert verify_receipt(url, settings).problems == ()
    assert {file.path for file in read_receipt(url, settings).files} == {"one", "two", "both"}
    assert (second / "one").read_text() == "1"


def test_folders_that_hold_nothing_come_back(tmp_path: Path, place: tuple[str, Any]) -> None:
    url, settings = place
    first, second = write(tmp_path / "first", one="1"), tmp_path / "second"
    (first / "empty" / "inner").mkdir(parents=True)
    how: dict[str, Any] = {"run_id": "run-1", "label": "out"}
    upload_tree(first, url, settings, facts={}, state="Cancelled", **how)

    restore_outputs(url, second, settings, **how)

    assert sorted(str(path.relative_to(second)) for path in second.rglob("*")) == [
        *("empty", "empty/inner", "one")
    ]
    upload_tree(second, url, settings, facts={}, **how)
    assert read_receipt(url, settings).folders == ("empty/inner",)


def test_a_run_that_wrote_nothing_yet_has_nothing_to_bring_back(
    tmp_path: Path, place: tuple[str, Any]
) -> None:
    target = tmp_path / "target"

    assert restore_outputs(place[0], target, place[1], run_id="run-1", label="out") == 0
    assert not target.exists()


def test_outputs_of_another_run_are_refused(tmp_path: Path, place: tuple[str, Any]) -> None:
    sync(write(tmp_path / "first", one="1"), place, run_id="run-1")

    with pytest.raises(OutputNotEmpty, match="run-1"):
        restore_outputs(place[0], tmp_path / "second", place[1], run_id="run-2", label="out")
