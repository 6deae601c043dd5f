"""Outputs on their way to the store while the script runs, and the upload that completes them."""

import json
import mmap
from dataclasses import replace
from pathlib import Path

import pytest

from tests.s3_faults import fault_proxy
from trainjob.errors import CorruptData, OutputNotEmpty
from trainjob.storage.claim import CLAIM
from trainjob.storage.output_mirror import OutputMirror
from trainjob.storage.own_files import RECEIPT, SUCCESS
from trainjob.storage.receipt import UNFINISHED_STATES, read_receipt, verify_receipt
from trainjob.storage.upload import upload_tree


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "sync" / "train_url.json"


@pytest.fixture
def sync(outputs, place, journal) -> OutputMirror:
    return mirror(outputs, place, journal)


def mirror(outputs: Path, place, journal=None, run_id="run-1", settings=None) -> OutputMirror:
    return OutputMirror(
        outputs,
        place.url,
        settings or place.settings,
        run_id=run_id,
        label="train_url",
        journal=journal,
    )


def upload(outputs: Path, place, journal=None, settings=None, **others):
    return upload_tree(
        outputs,
        place.url,
        settings or place.settings,
        run_id="run-1",
        facts={},
        label="train_url",
        journal=journal,
        **others,
    )


def result_of(place) -> set[str]:
    return set(place.paths()) - {RECEIPT, SUCCESS}


def test_files_are_sent_when_they_stay_as_they_are(sync, outputs, place):
    (outputs / "a.pt").write_bytes(b"half")
    (outputs / "b.pt.part").write_bytes(b"1")
    assert sync.look()
    (outputs / "a.pt").write_bytes(b"whole")

    reports = [sync.push(is_final=False) for _ in range(3)]

    assert [report.num_sent for report in reports] == [0, 1, 0]
    assert [report.missing for report in reports] == [("a.pt",), (), ()]
    assert place.get("a.pt") == b"whole"
    assert place.paths() == [CLAIM, "a.pt"]


def test_the_upload_sends_the_rest_alone_and_proves_all(s3, s3_place, outputs, journal, engine):
    for i in range(3):
        (outputs / f"{i}.pt").write_bytes(b"%d" % i)
    with fault_proxy(s3.port, lambda method, path: None) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        mirror(outputs, s3_place, journal, settings=settings).push(is_final=True)
        (outputs / "1.pt").write_bytes(b"changed")
        (outputs / "new").write_bytes(b"")
        proxy.requests.clear()

        receipt = upload(outputs, s3_place, journal, settings)

        sent = {path.rpartition("/")[2] for method, path in proxy.requests if method == "PUT"}
        read = {path.rpartition("/")[2] for method, path in proxy.requests if method == "GET"}
    assert sent == {"1.pt", "new", "claim.json", "receipt.json", "_SUCCESS"}
    files = {"0.pt", "1.pt", "2.pt", "new"}
    how, read_again = ("etag", set()) if engine == "curl" else ("read back", files)
    assert {file.path: file.verified for file in receipt.files} == dict.fromkeys(files, how)
    assert read & files == read_again
    assert verify_receipt(s3_place.url, s3.settings).problems == ()


def test_what_was_sent_and_then_deleted_is_removed_by_the_upload(sync, outputs, place, journal):
    for name in ("kept", "deleted"):
        (outputs / name).write_bytes(b"1")
    sync.push(is_final=True)
    (outputs / "deleted").unlink()
    sync.push(is_final=False)
    before = set(place.paths())

    upload(outputs, place, journal)

    assert "deleted" in before
    assert result_of(place) == {"kept"}
    assert verify_receipt(place.url, place.settings).problems == ()


def test_without_the_journal_the_upload_sends_all(sync, outputs, place):
    (outputs / "a").write_bytes(b"1")
    sync.push(is_final=True)

    upload(outputs, place)

    assert verify_receipt(place.url, place.settings).problems == ()


def test_only_what_the_store_has_spoiled_is_sent_again(s3, s3_place, outputs, journal):
    names = ["a", "b", "c", "d"]
    for name in names:
        (outputs / name).write_bytes(b"1")
    mirror(outputs, s3_place, journal).push(is_final=True)
    for name in ("b", "c"):
        s3_place.put(name, b"2")
    with fault_proxy(s3.port, lambda method, path: None) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)

        with pytest.raises(CorruptData, match="'b' other bytes than were sent, 'c' other"):
            upload(outputs, s3_place, journal, settings)
        receipt = upload(outputs, s3_place, journal, settings)

        sent = [path.rpartition("/")[2] for method, path in proxy.requests if method == "PUT"]
    assert sorted(set(sent) & set(names)) == ["b", "c"]
    assert receipt.is_result


def test_what_a_map_wrote_after_the_file_was_sent_is_in_the_result(sync, outputs, place, journal):
    """A store to a page that is not written back yet leaves size and time as they are."""
    file = outputs / "predictions.npy"
    file.write_bytes(bytes(8192))
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        mapped[:3] = b"one"
        sync.look()
        sync.push(is_final=False)
        sent_ahead = place.get(file.name)[:3]
        mapped[:3] = b"two"

    upload(outputs, place, journal)

    assert sent_ahead == b"one"
    assert place.get(file.name)[:3] == b"two"
    assert verify_receipt(place.url, place.settings).problems == ()


@pytest.mark.parametrize("state", sorted(UNFINISHED_STATES))
def test_who_broke_off_reads_nothing_again_before_it_has_its_receipt(
    sync, outputs, place, journal, monkeypatch, state
):
    """It may have little time left, and there is no result that could have old bytes."""
    file = outputs / "predictions.npy"
    file.write_bytes(bytes(8192))
    sync.push(is_final=True)
    monkeypatch.setattr("trainjob.storage.send.copy_file", None)

    receipt = upload(outputs, place, journal, state=state)

    assert [sent.path for sent in receipt.files] == [file.name]
    assert verify_receipt(place.url, place.settings).problems == ()


@pytest.mark.parametrize("damage", [b"2", b"", None])
def test_what_somebody_changed_in_the_store_is_not_part_of_a_result(
    sync, outputs, place, journal, damage
):
    (outputs / "a").write_bytes(b"1")
    sync.push(is_final=True)
    if damage is None:
        place.delete("a")
    else:
        place.put("a", damage)

    if damage == b"2":  # of the same size: only reading it shows the difference
        with pytest.raises(CorruptData) as caught:
            upload(outputs, place, journal)
        assert caught.value.retryable
    upload(outputs, place, journal)

    assert place.get("a") == b"1"
    assert verify_receipt(place.url, place.settings).problems == ()


def test_a_place_of_others_is_refused_before_the_first_file(sync, place):
    place.put("precious", b"1")

    with pytest.raises(OutputNotEmpty, match="1 files, such as 'precious'"):
        sync.push(is_final=False)

    assert place.paths() == ["precious"]


def test_a_run_that_another_run_overtakes_stops(sync, outputs, place):
    (outputs / "a").write_bytes(b"1")
    sync.push(is_final=True)
    place.put(CLAIM, json.dumps({"run_id": "run-2", "files": ["a"]}).encode())
    (outputs / "b").write_bytes(b"1")

    with pytest.raises(OutputNotEmpty, match="the run run-2"):
        sync.push(is_final=True)

    assert "b" not in place.paths()


def test_a_script_that_writes_nothing_leaves_nothing(sync, place):
    report = sync.push(is_final=False)

    assert (report.num_files, report.missing) == (0, ())
    assert place.paths() == []


def test_a_result_of_the_same_run_is_no_result_while_it_is_replaced(sync, outputs, place, journal):
    (outputs / "a").write_bytes(b"1")
    upload(outputs, place)
    (outputs / "a").write_bytes(b"22")

    sync.push(is_final=True)
    during = set(place.paths())
    upload(outputs, place, journal)

    assert SUCCESS not in during
    assert verify_receipt(place.url, place.settings).is_result


@pytest.mark.parametrize("state", ["Cancelled", "Failed", "Crashed"])
def test_what_a_broken_off_training_left_is_no_result(outputs, place, state):
    (outputs / "a").write_bytes(b"1")

    receipt = upload(outputs, place, state=state)

    report = verify_receipt(place.url, place.settings)
    assert place.paths() == [RECEIPT, "a"]
    assert receipt == read_receipt(place.url, place.settings)
    assert (report.state, report.problems, report.is_result) == (state, (), False)
    place.put(SUCCESS, b"")
    (problem,) = verify_receipt(place.url, place.settings).problems
    assert problem == f"_SUCCESS: there, though the state of the run is {state}"


@pytest.mark.parametrize("state", ["Completed", "AutoStopped", "TargetReached"])
def test_what_a_training_left_that_ended_by_itself_is_a_result(outputs, place, state):
    (outputs / "a").write_bytes(b"1")

    upload(outputs, place, state=state)

    report = verify_receipt(place.url, place.settings)
    assert (report.state, report.is_result) == (state, True)
    assert SUCCESS in place.paths()


def test_a_completed_run_replaces_what_it_left_when_it_was_cancelled(outputs, place):
    (outputs / "a").write_bytes(b"1")
    upload(outputs, place, state="Cancelled")
    (outputs / "a").unlink()
    (outputs / "b").write_bytes(b"2")

    upload(outputs, place)

    assert result_of(place) == {"b"}
    assert verify_receipt(place.url, place.settings).is_result


def test_a_cancelled_run_without_outputs_leaves_the_place_to_the_next_one(sync, outputs, place):
    (outputs / "a").write_bytes(b"1")
    sync.push(is_final=True)
    (outputs / "a").unlink()

    receipt = upload(outputs, place, state="Cancelled")

    assert receipt.files == ()
    assert place.paths() == []


def test_a_cancelled_run_without_outputs_keeps_its_earlier_result(outputs, place):
    (outputs / "a").write_bytes(b"1")
    upload(outputs, place)
    before = place.paths()
    (outputs / "a").unlink()

    upload(outputs, place, state="Cancelled")

    assert place.paths() == before
    assert verify_receipt(place.url, place.settings).is_result


def test_a_journal_that_cannot_be_read_or_written_costs_only_time(outputs, place, tmp_path):
    (outputs / "a").write_bytes(b"1")
    (tmp_path / "file").write_bytes(b"")
    broken = tmp_path / "broken"
    broken.write_text('{"whose": ["x", "y"], "files": []}')

    for journal in (tmp_path / "file" / "journal", broken, tmp_path):
        mirror(outputs, place, journal).push(is_final=True)
        upload(outputs, place, journal)

    assert verify_receipt(place.url, place.settings).is_result
