"""Taking outputs to a store: complete with a receipt, and nobody else's files touched."""

import json
from typing import Any

import pytest

from trainjob.errors import OutputEmpty, OutputNotEmpty, StoreError, TreeChanged, UnsafeKey
from trainjob.events import Transferred, listening
from trainjob.storage.claim import CLAIM
from trainjob.storage.local_tree import list_folder
from trainjob.storage.meter import Meter
from trainjob.storage.own_files import RECEIPT, SUCCESS
from trainjob.storage.receipt import read_receipt, verify_receipt
from trainjob.storage.stage import stage_tree
from trainjob.storage.store import open_store
from trainjob.storage.upload import upload_tree

BOOKKEEPING = {RECEIPT, SUCCESS}


@pytest.fixture
def outputs(tmp_path, write_tree):
    return write_tree(tmp_path / "outputs", {"model.pt": b"weights", "logs/metrics.json": b"{}"})


@pytest.fixture
def upload(outputs, place):
    def run(run_id="run-1", url=None, facts=None):
        return upload_tree(
            outputs,
            url or place.url,
            place.settings,
            run_id=run_id,
            facts=facts or {},
            label="train_url",
        )

    return run


def test_outputs_arrive_with_a_receipt_that_holds(upload, place):
    facts = {"job": {"name": "digits"}, "argv": ["python", "train.py"], "stages": {"train": 1.5}}

    receipt = upload(facts=facts)

    assert set(place.paths()) == {"model.pt", "logs/metrics.json", *BOOKKEEPING}
    assert place.get("model.pt") == b"weights"
    assert place.get(SUCCESS) == b""
    assert [(file.path, file.size_bytes) for file in receipt.files] == [
        ("logs/metrics.json", 2),
        ("model.pt", 7),
    ]
    assert read_receipt(place.url, place.settings) == receipt
    assert read_receipt(place.url, place.settings).facts == facts
    assert json.loads(place.get(RECEIPT))["job"] == {"name": "digits"}
    assert verify_receipt(place.url, place.settings).problems == ()


def test_names_of_every_kind_come_back_the_same(nasty_tree, write_tree, place, tmp_path, read_tree):
    source = write_tree(tmp_path / "nasty", nasty_tree)

    upload_tree(source, place.url, place.settings, run_id="r", facts={}, label="train_url")
    stage_tree(place.url, tmp_path / "back", place.settings, "data")

    back = read_tree(tmp_path / "back")
    assert {name: data for name, data in back.items() if name not in BOOKKEEPING} == nasty_tree


def test_an_empty_output_says_how_the_script_gets_its_folder(place, tmp_path):
    (tmp_path / "outputs" / "only" / "folders").mkdir(parents=True)

    for folder in (tmp_path / "outputs", tmp_path / "missing"):
        with pytest.raises(OutputEmpty) as caught:
            upload_tree(folder, place.url, place.settings, run_id="r", facts={}, label="train_url")

        assert "--train_url" in str(caught.value)
        assert str(folder) in str(caught.value)
    assert place.paths() == []


def test_a_place_with_files_of_others_is_refused_and_untouched(upload, place):
    place.put("precious", b"1")

    with pytest.raises(OutputNotEmpty, match=r"1 files, such as 'precious'.*\{run_id\}"):
        upload()

    assert place.paths() == ["precious"]


def test_the_output_of_another_run_is_refused_and_untouched(upload, place):
    upload("run-1")
    before = {path: place.get(path) for path in place.paths()}

    with pytest.raises(OutputNotEmpty, match="the output of the run run-1"):
        upload("run-2")

    assert {path: place.get(path) for path in place.paths()} == before


def test_a_lone_success_marker_of_others_is_refused(upload, place):
    place.put(SUCCESS, b"")

    with pytest.raises(OutputNotEmpty):
        upload()

    assert place.paths() == [SUCCESS]


def test_a_run_that_another_run_overtakes_does_not_complete(upload, place):
    """Both found the folder empty; the other's claim replaces ours while we upload."""

    def overtake(event):
        if event.label == "train_url":
            place.put(CLAIM, json.dumps({"run_id": "run-2", "files": ["other.pt"]}).encode())

    with listening(overtake), pytest.raises(OutputNotEmpty, match="in use by the run run-2"):
        upload()

    assert SUCCESS not in place.paths()
    assert RECEIPT not in place.paths()


def test_a_file_that_another_run_adds_meanwhile_is_noticed(upload, place):
    def intrude(event):
        if event.label == "train_url":
            place.put("other.pt", b"of another run")

    with listening(intrude), pytest.raises(OutputNotEmpty, match=r"1 files, such as 'other.pt'"):
        upload()

    assert SUCCESS not in place.paths()


def test_what_a_killed_first_attempt_left_is_not_in_the_way(upload, place):
    place.put("_trainjob/partial-0123", b"half a claim")

    upload()

    assert set(place.paths()) == {"model.pt", "logs/metrics.json", *BOOKKEEPING}


def test_a_claim_that_is_no_claim_is_of_others(upload, place):
    place.put(CLAIM, b"not JSON")

    with pytest.raises(OutputNotEmpty):
        upload()

    assert place.get(CLAIM) == b"not JSON"


def test_a_file_where_the_folder_should_be_is_refused(upload, place):
    place.put("out", b"a file")

    with pytest.raises(OutputNotEmpty, match="a file of that name"):
        upload(url=f"{place.url}/out")

    assert place.get("out") == b"a file"


def test_a_neighbour_with_the_same_start_is_not_in_the_way(upload, place):
    place.put("outer/file", b"1")

    upload(url=f"{place.url}/out")

    assert place.get("outer/file") == b"1"
    assert verify_receipt(f"{place.url}/out", place.settings).problems == ()


def test_the_same_run_replaces_its_own_output_and_removes_what_it_no_longer_has(
    upload, outputs, place
):
    upload()
    (outputs / "model.pt").write_bytes(b"better weights")
    (outputs / "logs" / "metrics.json").unlink()
    (outputs / "logs").rmdir()
    (outputs / "new").write_bytes(b"")

    upload()

    assert set(place.paths()) == {"model.pt", "new", *BOOKKEEPING}
    assert place.get("model.pt") == b"better weights"
    assert verify_receipt(place.url, place.settings).problems == ()


def test_a_file_of_others_in_an_own_output_is_refused_and_untouched(upload, place):
    upload()
    place.put("of another", b"1")

    with pytest.raises(OutputNotEmpty, match="'of another'"):
        upload()

    assert place.get("of another") == b"1"


@pytest.mark.parametrize("num_there", [0, 1, 2])
def test_an_upload_that_broke_off_is_completed(upload, outputs, place, num_there):
    """What a process that was killed after the claim, and some files, leaves behind."""
    names = ["model.pt", "logs/metrics.json", "no longer written"]
    place.put(CLAIM, json.dumps({"run_id": "run-1", "files": names}).encode())
    for name in names[:num_there] + names[2:]:
        place.put(name, b"half")
    place.put("_trainjob/partial-0123", b"half")

    upload()

    assert set(place.paths()) == {"model.pt", "logs/metrics.json", *BOOKKEEPING}
    assert verify_receipt(place.url, place.settings).problems == ()


def test_a_failing_upload_leaves_a_claim_and_no_success(upload, outputs, place):
    upload()
    (outputs / "logs" / "metrics.json").unlink()
    (outputs / "logs" / "metrics.json").symlink_to("../model.pt")
    watched = []

    def break_off(event):
        watched.append(event)
        raise StoreError("the network is gone")

    with listening(break_off), pytest.raises(StoreError, match="the network is gone"):
        upload()

    assert len(watched) == 1
    assert SUCCESS not in place.paths()
    assert CLAIM in place.paths()
    assert "_SUCCESS: missing, the upload was not finished" in " ".join(
        verify_receipt(place.url, place.settings).problems
    )


@pytest.mark.parametrize("name", ["_SUCCESS", "_trainjob/mine", "_trainjob", "_SUCCESS/x"])
def test_names_that_we_use_are_refused_to_the_script(write_tree, tmp_path, place, name):
    source = write_tree(tmp_path / "source", {name: b"1"})

    with pytest.raises(UnsafeKey, match=f"'{name}' has a name that trainjob uses"):
        upload_tree(source, place.url, place.settings, run_id="r", facts={}, label="train_url")

    assert place.paths() == []


def test_our_names_deeper_in_the_tree_are_the_scripts_own(write_tree, tmp_path, place):
    source = write_tree(tmp_path / "source", {"a/_SUCCESS": b"", "a/_trainjob/x": b"1"})

    upload_tree(source, place.url, place.settings, run_id="r", facts={}, label="train_url")

    assert verify_receipt(place.url, place.settings).problems == ()


def test_links_inside_are_followed_and_links_out_are_refused(outputs, upload, place, tmp_path):
    (outputs / "latest").symlink_to("model.pt")
    upload()
    assert place.get("latest") == b"weights"

    (tmp_path / "secret").write_bytes(b"a key")
    (outputs / "stolen").symlink_to(tmp_path / "secret")

    with pytest.raises(UnsafeKey, match="'stolen' is a link out of the folder"):
        upload()


def test_a_file_that_changes_while_it_is_uploaded_is_a_changed_tree(outputs, place):
    listing = list_folder(outputs)
    (outputs / "model.pt").write_bytes(b"other weights")

    with open_store(place.url, place.settings) as store, pytest.raises(TreeChanged) as caught:
        store.upload(outputs, listing.files, Meter("train_url", listing.files))

    assert "model.pt" in str(caught.value)


def test_a_file_that_vanishes_while_it_is_uploaded_is_a_changed_tree(outputs, place):
    listing = list_folder(outputs)
    (outputs / "model.pt").unlink()

    with open_store(place.url, place.settings) as store, pytest.raises(TreeChanged):
        store.upload(outputs, listing.files, Meter("train_url", listing.files))


def test_progress_tells_of_the_upload_and_of_reading_back(upload):
    events: list[Any] = []

    with listening(events.append):
        upload()

    last = {event.label: event for event in events}
    assert last["train_url"] == Transferred("train_url", 2, 2, 9, 9)
    assert last["verify train_url"] == Transferred("verify train_url", 2, 2, 9, 9)
