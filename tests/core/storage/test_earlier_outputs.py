"""Outputs of a run that was broken off or stopped in an attempt after one that had written more."""

from pathlib import Path
from typing import Any

import pytest

from trainjob.storage.output_mirror import OutputMirror
from trainjob.storage.own_files import RECEIPT, SUCCESS
from trainjob.storage.receipt import read_receipt, verify_receipt
from trainjob.storage.upload import upload_tree


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return tmp_path / "previous" / "attempt-0"


@pytest.fixture
def last(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder


@pytest.fixture
def upload(last, first, place, tmp_path):
    def run(state="Failed", earlier=None):
        return upload_tree(
            last,
            place.url,
            place.settings,
            run_id="run-1",
            facts={},
            label="out",
            state=state,
            journal=tmp_path / "journal.json",
            earlier=[first] if earlier is None else earlier,
        )

    return run


@pytest.fixture
def sent_ahead(last, first, place, tmp_path, write_tree):
    """Have a first attempt write files that are sent while it trains, and be set aside."""

    def run(tree: dict[str, bytes]) -> None:
        write_tree(last, tree)
        how: dict[str, Any] = {"run_id": "run-1", "label": "out"}
        journal = tmp_path / "journal.json"
        mirror = OutputMirror(last, place.url, place.settings, journal=journal, **how)
        mirror.push(is_final=True)
        first.parent.mkdir()
        last.rename(first)
        last.mkdir()

    return run


def stored(place) -> dict[str, bytes]:
    return {path: place.get(path) for path in place.paths() if path not in (RECEIPT, SUCCESS)}


@pytest.mark.parametrize("state", ["Failed", "Cancelled", "AutoStopped", "TargetReached"])
def test_an_attempt_that_wrote_nothing_takes_nothing_away(sent_ahead, upload, place, state):
    tree = {"model.pt": b"weights", "logs/metrics.json": b"{}"}
    sent_ahead(tree)

    receipt = upload(state)

    assert stored(place) == tree
    assert receipt.earlier == ("logs/metrics.json", "model.pt")
    assert receipt == read_receipt(place.url, place.settings)
    report = verify_receipt(place.url, place.settings)
    assert report.problems == ()
    assert report.is_result == (state in ("AutoStopped", "TargetReached"))


@pytest.mark.parametrize("state", ["Failed", "AutoStopped"])
def test_what_both_attempts_wrote_is_that_of_the_last(
    sent_ahead, upload, place, last, write_tree, state
):
    sent_ahead({"log": b"long", "only/first": b"1"})
    write_tree(last, {"log": b"l", "new": b"2"})

    receipt = upload(state)

    assert stored(place) == {"log": b"l", "only/first": b"1", "new": b"2"}
    assert receipt.earlier == ("only/first",)


def test_what_was_not_sent_before_its_attempt_was_killed_is_sent(upload, place, first, write_tree):
    write_tree(first, {"model.pt": b"weights"})

    upload()

    assert stored(place) == {"model.pt": b"weights"}


def test_the_latest_of_several_attempts_counts(upload, place, tmp_path, write_tree):
    folders = [
        write_tree(tmp_path / "second", {"a": b"second", "b": b"second"}),
        write_tree(tmp_path / "first", {"b": b"first", "c": b"first"}),
        tmp_path / "no such folder",
    ]

    upload(earlier=folders)

    assert stored(place) == {"a": b"second", "b": b"second", "c": b"first"}


def test_a_folder_and_a_file_of_one_name_are_those_of_the_last_attempt(
    sent_ahead, upload, place, last, write_tree
):
    sent_ahead({"a/b": b"1", "c": b"1", "empty": b"1", "made/x": b"1"})
    write_tree(last, {"a": b"2", "c/d": b"2"})
    for name in ("empty", "made"):
        (last / name).mkdir()

    receipt = upload()

    files = {path: data for path, data in stored(place).items() if not path.endswith("/")}
    assert files == {"a": b"2", "c/d": b"2", "made/x": b"1"}
    assert (receipt.earlier, receipt.folders) == (("made/x",), ("empty",))
    assert verify_receipt(place.url, place.settings).problems == ()


@pytest.mark.parametrize("name", ["_SUCCESS", "_trainjob/x"])
def test_our_names_are_not_taken_from_an_earlier_attempt(upload, place, first, write_tree, name):
    write_tree(first, {name: b"1", "model.pt": b"weights"})

    upload()

    assert stored(place) == {"model.pt": b"weights"}


def test_a_link_in_the_place_of_an_earlier_folder_is_not_followed(upload, place, first, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_bytes(b"key")
    first.parent.mkdir()
    first.symlink_to(tmp_path / "elsewhere")

    upload()

    assert stored(place) == {}


@pytest.mark.parametrize("state", ["AutoStopped", "TargetReached"])
def test_a_stopped_attempt_that_wrote_nothing_leaves_a_finished_result_as_it_is(
    sent_ahead, upload, place, last, first, write_tree, state
):
    write_tree(last, {"model.pt": b"weights"})
    whole = upload("Completed")
    first.parent.mkdir()
    last.rename(first)
    last.mkdir()

    receipt = upload(state)

    assert receipt == whole
    assert stored(place) == {"model.pt": b"weights"}
    assert verify_receipt(place.url, place.settings).is_result


@pytest.mark.parametrize("state", ["Completed", "TargetReached"])
def test_what_ranks_finished_is_what_their_attempt_wrote_alone(
    sent_ahead, upload, place, last, write_tree, state
):
    sent_ahead({"model.pt": b"old", "only/first": b"1"})
    upload("Failed")
    write_tree(last, {"model.pt": b"new"})

    receipt = upload(state)

    assert stored(place) == {"model.pt": b"new"}
    assert receipt.earlier == ()
    assert verify_receipt(place.url, place.settings).is_result
