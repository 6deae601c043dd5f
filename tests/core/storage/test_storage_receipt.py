"""Proving an uploaded tree again, byte by byte."""

import json
from typing import Any

import pytest

from trainjob.errors import CorruptData, StoreNotFound
from trainjob.events import Transferred, listening
from trainjob.storage.claim import CLAIM
from trainjob.storage.own_files import RECEIPT, SUCCESS
from trainjob.storage.receipt import read_receipt, verify_receipt
from trainjob.storage.upload import upload_tree


@pytest.fixture
def uploaded(place, tmp_path, write_tree):
    source = write_tree(tmp_path / "outputs", {"model.pt": b"x" * 5000, "sub/metrics": b"{}"})
    upload_tree(source, place.url, place.settings, run_id="run-1", facts={}, label="train_url")
    return place


def problems_of(place) -> tuple[str, ...]:
    return verify_receipt(place.url, place.settings).problems


def test_an_untouched_tree_holds(uploaded):
    events: list[Any] = []

    with listening(events.append):
        report = verify_receipt(uploaded.url, uploaded.settings)

    assert report.problems == ()
    assert (report.num_files, report.size_bytes) == (2, 5002)
    assert events[-1] == Transferred("verify", 2, 2, 5002, 5002)


def test_one_changed_byte_is_found(uploaded):
    uploaded.put("model.pt", b"x" * 4999 + b"y")

    (problem,) = problems_of(uploaded)

    assert problem.startswith("model.pt: changed, sha256 is ")


def test_another_size_is_found(uploaded):
    uploaded.put("model.pt", b"x" * 4999)

    assert problems_of(uploaded) == ("model.pt: 4999 bytes, not 5000",)


def test_a_missing_file_is_found(uploaded):
    uploaded.delete("sub/metrics")

    assert problems_of(uploaded) == ("sub/metrics: missing",)


def test_a_file_that_the_receipt_does_not_know_is_found(uploaded):
    uploaded.put("sub/extra", b"")

    assert problems_of(uploaded) == ("sub/extra: not in the receipt",)


def test_a_missing_success_marker_is_found(uploaded):
    uploaded.delete(SUCCESS)

    assert problems_of(uploaded) == ("_SUCCESS: missing, the upload was not finished",)


def test_an_upload_that_goes_on_is_found(uploaded):
    uploaded.put(CLAIM, b"{}")

    assert problems_of(uploaded) == (f"{CLAIM}: not in the receipt",)


def test_everything_that_is_wrong_is_told_at_once(uploaded):
    uploaded.delete(SUCCESS)
    uploaded.delete("sub/metrics")
    uploaded.put("model.pt", b"y" * 5000)
    uploaded.put("extra", b"")

    assert len(problems_of(uploaded)) == 4


def test_a_tree_without_a_receipt_does_not_hold(place):
    place.put("file", b"1")

    (problem,) = problems_of(place)

    assert "no receipt (_trainjob/receipt.json)" in problem
    with pytest.raises(StoreNotFound, match="no receipt"):
        read_receipt(place.url, place.settings)


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"run_id": "x"', b"\xff"])
def test_a_receipt_that_cannot_be_read_does_not_hold(uploaded, text):
    uploaded.put(RECEIPT, text)

    (problem,) = problems_of(uploaded)

    assert "cannot be read" in problem
    with pytest.raises(CorruptData):
        read_receipt(uploaded.url, uploaded.settings)


def test_a_receipt_of_a_later_form_is_not_taken_for_a_known_one(uploaded):
    receipt = json.loads(uploaded.get(RECEIPT))
    uploaded.put(RECEIPT, json.dumps({**receipt, "format": 2}).encode())

    with pytest.raises(CorruptData, match="use the version of trainjob that wrote it"):
        read_receipt(uploaded.url, uploaded.settings)


def test_verifying_changes_nothing(uploaded):
    before = {path: uploaded.get(path) for path in uploaded.paths()}

    verify_receipt(uploaded.url, uploaded.settings)

    assert {path: uploaded.get(path) for path in uploaded.paths()} == before
