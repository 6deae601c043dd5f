"""Saving checkpoints while a run goes on: what is ready, what changed, what was deleted."""

import mmap
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.core.storage.checkpoints import (
    files_of,
    hook,
    index_of,
    index_path_of,
    mirror,
    restore,
    save_step,
)
from tests.core.storage.conftest import LocalPlace
from tests.core.storage.engines import use_engine
from tests.s3_faults import fault_proxy
from trainjob.errors import CorruptData, StoreError
from trainjob.storage import checkpoint_mirror, live_tree
from trainjob.storage.checkpoint_claim import OWNER
from trainjob.storage.checkpoint_mirror import CheckpointMirror


def test_a_step_counts_when_its_marker_is_there(place, folder):
    sync = mirror(folder, place)
    save_step(folder, 1)
    (folder / "step-00000001" / "COMPLETE").unlink()

    report = sync.push(is_final=False)
    assert (report.num_files, report.missing) == (0, ("step-00000001/",))

    (folder / "step-00000001" / "COMPLETE").touch()
    report = sync.push(is_final=False)

    assert (report.num_files, report.num_sent, report.missing) == (3, 3, ())


@pytest.mark.parametrize("is_final", [False, True])
def test_a_step_of_another_program_is_taken_when_it_stays_as_it_is(
    place, folder, tmp_path, write_tree, is_final
):
    sync = mirror(folder, place)
    write_tree(folder, {"step-00000100/model.bin": b"w"})
    assert sync.look()

    report = sync.push(is_final)

    assert (report.num_sent, report.missing) == (1, ())
    back = restore(place, tmp_path / "back")
    assert (back.step, back.num_files) == (None, 1)
    assert (tmp_path / "back/step-00000100/model.bin").read_bytes() == b"w"


@pytest.mark.parametrize(
    "name",
    [
        ".tmp-5/model.pt",
        ".hidden",
        "model.pt.tmp",
        "a/.tmp-x",
        "a/b.part",
        "_trainjob/x",
        "_SUCCESS",
    ],
)
def test_what_is_not_ready_by_its_name_is_left_alone(tmp_path, folder, write_tree, name):
    place = LocalPlace(tmp_path / "place")
    write_tree(folder, {name: b"1"})

    report = mirror(folder, place).push(is_final=True)

    assert (report.num_files, report.missing) == (0, ())
    assert files_of(place.paths()) == []


def test_a_file_of_the_script_is_taken_when_it_stays_as_it_is(place, folder):
    sync = mirror(folder, place)
    (folder / "last.pt").write_bytes(b"half")
    assert sync.look()
    (folder / "last.pt").write_bytes(b"whole")

    changed = sync.push(is_final=False)
    unchanged = sync.push(is_final=False)

    assert (changed.num_sent, changed.missing) == (0, ("last.pt",))
    assert (unchanged.num_sent, unchanged.missing) == (1, ())
    assert place.get("last.pt") == b"whole"
    assert not sync.look()


def test_what_a_map_writes_after_a_file_was_sent_is_sent_too(place, folder):
    """A store to a page that is not written back yet leaves size and time as they are."""
    sync = mirror(folder, place)
    file = folder / "state.bin"
    file.write_bytes(bytes(8192))
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        os.fsync(opened.fileno())
        os.utime(file, ns=(1, 1))
        mapped[:3] = b"one"
        if file.stat().st_mtime_ns == 1:
            pytest.skip("the folder of the tests is in memory, where maps never change a time")
        os.utime(file, ns=(2, 2))
        sync.look()
        first = sync.push(is_final=False)
        mapped[:3] = b"two"
        sync.look()
        sync.push(is_final=False)

    assert first.num_sent == 1
    (saved,) = index_of(place)["files"]
    assert place.get(saved["place"] + saved["path"])[:3] == b"two"


def test_a_folder_of_the_script_is_taken_when_no_file_is_added(place, folder, write_tree):
    sync = mirror(folder, place)
    write_tree(folder, {"epoch-1/a.pt": b"1"})
    sync.look()
    write_tree(folder, {"epoch-1/b.pt": b"1"})

    assert sync.push(is_final=False).num_sent == 0
    assert sync.push(is_final=False).num_sent == 2


def test_a_file_that_always_changes_does_not_keep_its_neighbours(place, folder, write_tree):
    sync = mirror(folder, place)
    for i in range(3):
        write_tree(folder, {"run/ckpt/a.pt": b"1"} if i == 0 else {})
        write_tree(folder, {"run/events": b"x" * (i + 1)})
        report = sync.push(is_final=False)

    assert (report.num_files, report.missing) == (1, ("run/events",))


def test_a_log_beside_the_weights_does_not_keep_them_for_ever(place, folder, write_tree):
    sync = mirror(folder, place)
    write_tree(folder, {"exp/epoch-1.pt": b"1"})
    sent = []
    for i in range(25):
        write_tree(folder, {"exp/log.txt": b"x" * (i + 1)})
        if i == 12:
            write_tree(folder, {"exp/epoch-2.pt": b"2"})
        sent.append(sync.push(is_final=False).num_sent)

    assert [i for i, num_sent in enumerate(sent) if num_sent] == [9, 22]
    assert sum(sent) == 2
    assert sync.push(is_final=True).missing == ()


def test_a_checkpoint_of_many_files_is_taken_as_a_whole_however_slow(place, folder, write_tree):
    sync = mirror(folder, place)
    for i in range(20):
        write_tree(folder, {f"checkpoint-500/shard-{i}.bin": b"x"})
        assert sync.push(is_final=False).num_sent == 0
    assert sync.push(is_final=False).num_sent == 20


def test_a_step_that_has_lost_its_marker_is_not_mixed_with_what_was_saved(place, folder, tmp_path):
    sync = mirror(folder, place)
    save_step(folder, 1)
    sync.push(is_final=False)
    (folder / "step-00000001/COMPLETE").unlink()
    (folder / "step-00000001/model.pt").write_bytes(b"half")

    assert [sync.push(is_final).num_sent for is_final in (False, False, True)] == [0, 0, 0]

    assert restore(place, tmp_path / "back").step == 1
    assert (tmp_path / "back/step-00000001/model.pt").read_bytes() == b"weights"


def test_what_another_program_deletes_in_its_step_goes_from_the_store(
    place, folder, tmp_path, write_tree
):
    sync = mirror(folder, place)
    write_tree(folder, {"step-00000100/shard-0": b"0", "step-00000100/shard-1": b"1"})
    sync.push(is_final=True)
    (folder / "step-00000100/shard-1").unlink()

    sync.push(is_final=True)

    assert files_of(place.paths()) == ["step-00000100/shard-0"]


def test_a_link_to_a_name_that_is_no_text_keeps_nothing_from_being_saved(place, folder):
    odd = folder / os.fsdecode(b"\xff")
    odd.mkdir()
    (odd / "m.pt").write_bytes(b"m")
    (folder / "last.pt").symlink_to(odd / "m.pt")

    report = mirror(folder, place).push(is_final=True)

    assert place.get("last.pt") == b"m"
    assert len(report.missing) == 1


def test_a_folder_that_rests_now_and_then_is_taken_as_a_whole(place, folder, write_tree):
    sync = mirror(folder, place)
    for i in range(1, 10):
        if i % 3:
            write_tree(folder, {"exp/a.pt": b"%d" % i, "exp/b.pt": b"%d" % i})
        assert sync.push(is_final=False).num_sent == (0 if i % 3 else 2)


def test_what_changes_while_it_is_sent_waits_for_the_next_pass(place, folder, monkeypatch):
    sync = mirror(folder, place)
    for name in ("a.pt", "b.pt"):
        (folder / name).write_bytes(b"1")
    sync.look()

    def change(name: str) -> None:
        if name == "upload" and files_of(place.paths()) == []:
            (folder / "a.pt").write_bytes(b"changed")

    hook(monkeypatch, change)

    first = sync.push(is_final=False)
    monkeypatch.undo()
    named = [file["path"] for file in index_of(place)["files"]]
    sync.push(is_final=False)
    third = sync.push(is_final=False)

    assert (first.num_sent, first.missing) == (1, ("a.pt",))
    assert named == ["b.pt"]
    assert (third.num_sent, third.missing) == (1, ())
    assert place.get("a.pt") == b"changed"


def test_what_the_run_deletes_goes_from_the_store_too(place, folder):
    sync = mirror(folder, place)
    (folder / "old.pt").write_bytes(b"1")
    for step in (1, 2, 3):
        save_step(folder, step)
    sync.push(is_final=True)
    save_step(folder, 4)
    shutil.rmtree(folder / "step-00000001")
    (folder / "old.pt").unlink()

    reports = [sync.push(is_final=False), sync.push(is_final=False)]

    assert [report.num_files for report in reports] == [13, 9]
    assert {path.partition("/")[0] for path in files_of(place.paths())} == {
        f"step-{step:08d}" for step in (2, 3, 4)
    }
    assert index_of(place)["pending"] == []


def test_an_empty_folder_that_a_delete_leaves_is_removed_from_a_store_of_folders(tmp_path, folder):
    place = LocalPlace(tmp_path / "place")
    sync = mirror(folder, place)
    for step in (1, 2):
        save_step(folder, step)
    sync.push(is_final=True)
    shutil.rmtree(folder / "step-00000001")

    sync.push(is_final=True)

    assert sorted(path.name for path in place.root.iterdir()) == ["_trainjob", "step-00000002"]


def test_a_folder_that_is_lost_deletes_nothing(place, folder):
    save_step(folder, 1)
    sync = mirror(folder, place)
    sync.push(is_final=True)
    shutil.rmtree(folder)

    report = sync.push(is_final=True)

    assert report.num_files == 3
    assert len(files_of(place.paths())) == 3


def test_a_step_that_is_half_deleted_stays_in_the_store(place, folder):
    sync = mirror(folder, place)
    for step in (1, 2):
        save_step(folder, step)
    sync.push(is_final=True)
    (folder / "step-00000001" / "model.pt").unlink()

    sync.push(is_final=True)

    assert "step-00000001/model.pt" in place.paths()


def test_what_this_machine_never_had_is_not_deleted(place, folder, tmp_path):
    for step in (1, 2):
        save_step(folder, step)
    mirror(folder, place).push(is_final=True)
    other_machine = tmp_path / "other"
    save_step(other_machine, 3)

    report = mirror(other_machine, place).push(is_final=True)

    assert report.num_files == 9


def test_a_file_that_somebody_deletes_in_the_store_is_sent_again(place, folder):
    sync = mirror(folder, place)
    save_step(folder, 1)
    sync.push(is_final=False)
    place.delete("step-00000001/model.pt")

    report = sync.push(is_final=False)

    assert report.num_sent == 1
    assert place.get("step-00000001/model.pt") == b"weights"


@pytest.mark.parametrize("has_journal", [True, False])
def test_another_process_goes_on_without_sending_again(place, folder, tmp_path, has_journal):
    journal = tmp_path / "sync" / "checkpoints.json" if has_journal else None
    save_step(folder, 1)
    (folder / "last.pt").write_bytes(b"1")
    mirror(folder, place, journal=journal).push(is_final=False)
    save_step(folder, 2)

    report = mirror(folder, place, journal=journal).push(is_final=True)

    assert (report.num_files, report.num_sent) == (7, 4)


def test_the_last_content_of_every_file_is_under_its_name_at_the_end(place, folder):
    sync = mirror(folder, place)
    for content in (b"one", b"two", b"three", b"four"):
        (folder / "last.pt").write_bytes(content)
        sync.push(is_final=False)
        sync.push(is_final=False)

    sync.push(is_final=True)

    assert place.paths() == [index_path_of(place), OWNER, "last.pt"]
    assert place.get("last.pt") == b"four"


def test_links_and_what_is_no_file_do_not_keep_the_rest(place, folder, tmp_path):
    save_step(folder, 1)
    (tmp_path / "secret").write_bytes(b"a key")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "broken").symlink_to("nothing")
    (folder / "best").symlink_to("step-00000001")
    os.mkfifo(folder / "pipe")

    report = mirror(folder, place).push(is_final=True)

    assert report.missing == ("broken", "out", "pipe")
    assert "best/model.pt" in place.paths()
    assert not any("secret" in path or "out" in path for path in place.paths())


def test_what_is_missing_is_known_without_the_store(place, folder):
    sync = mirror(folder, place)
    save_step(folder, 1)
    sync.push(is_final=False)
    save_step(folder, 2)
    (folder / "last.pt").write_bytes(b"1")
    sync.look()

    report = sync.known(StoreError("gone"))

    assert (report.num_files, report.size_bytes) == (3, 8)
    assert report.missing == ("last.pt", "step-00000002/")
    assert str(report.error) == "gone"


def test_bytes_that_come_back_wrong_do_not_count(s3, s3_place, folder, tmp_path, monkeypatch):
    use_engine(monkeypatch, "s3fs")  # the other one knows by the ETag what arrived
    save_step(folder, 1)
    wrong = [True]

    def flip(method: str, path: str) -> Any:
        return "flip" if wrong[0] and method == "GET" and path.endswith("model.pt") else None

    with fault_proxy(s3.port, flip) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        sync = CheckpointMirror(folder, s3_place.url, settings, job="digits", run_id="r")
        with pytest.raises(CorruptData, match="other bytes than were sent"):
            sync.push(is_final=False)
        assert index_of(s3_place)["files"] == []
        wrong[0] = False
        assert sync.push(is_final=False).num_files == 3


def test_a_file_that_vanishes_while_the_folder_is_read_is_no_error(place, folder, monkeypatch):
    save_step(folder, 1)
    sync = mirror(folder, place)
    hook(monkeypatch, lambda name: shutil.rmtree(folder / "step-00000001", ignore_errors=True))

    report = sync.push(is_final=False)

    assert (report.num_files, report.missing) == (0, ("step-00000001/",))


def test_a_step_that_is_exchanged_while_the_folder_is_read_waits(place, folder, monkeypatch):
    """Its old files are listed, and then it is another one with a file more."""
    save_step(folder, 1)
    sync = mirror(folder, place)
    looks = iter([lambda: None, (folder / "step-00000001" / "rank-1.pt").touch])

    def look_at(root: Path, url: str, is_wanted):
        next(looks, lambda: None)()
        return live_tree.look_at(root, url, is_wanted)

    monkeypatch.setattr(checkpoint_mirror, "look_at", look_at)
    reports = [sync.push(is_final=False), sync.push(is_final=False)]

    assert [report.num_files for report in reports] == [0, 4]
