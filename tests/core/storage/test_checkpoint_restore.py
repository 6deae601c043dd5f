"""Bringing checkpoints back: whole and verified, of this job, by one run at a time."""

import json
import os
import shutil
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
from trainjob.errors import CheckpointsOfAnother, CorruptData, StoreError
from trainjob.events import Transferred, listening
from trainjob.storage.checkpoint_claim import OWNER
from trainjob.storage.checkpoint_index import next_index
from trainjob.storage.checkpoint_restore import Restored


def test_what_was_saved_comes_back_as_it_was(place, folder, tmp_path, read_tree, nasty_tree):
    save_step(folder, 7)
    for name, data in nasty_tree.items():
        (folder / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "own" / name).write_bytes(data)
    os.utime(folder / "step-00000007" / "model.pt", ns=(10**18, 10**18))
    saved = read_tree(folder)

    report = mirror(folder, place).push(is_final=True)
    back = restore(place, tmp_path / "back", run_id="run-2")

    assert read_tree(tmp_path / "back") == saved
    assert (tmp_path / "back" / "step-00000007" / "model.pt").stat().st_mtime_ns == 10**18
    assert back == Restored(7, len(saved), sum(map(len, saved.values())))
    assert (report.num_files, report.size_bytes, report.missing, report.error) == (
        len(saved),
        back.size_bytes,
        (),
        None,
    )


def test_links_come_back_as_links(place, folder, tmp_path, write_tree, read_tree):
    write_tree(folder, {"epoch-1.pt": b"1", "epoch-2.pt": b"2", "runs/a/model.pt": b"m"})
    (folder / "last.pt").symlink_to("epoch-1.pt")
    (folder / "best.pt").symlink_to(folder / "epoch-2.pt")
    (folder / "runs/latest").symlink_to("a")
    (folder / "newest").symlink_to("runs/latest")
    sync = mirror(folder, place)
    sync.push(is_final=True)
    (folder / "last.pt").unlink()
    (folder / "last.pt").symlink_to("epoch-2.pt")
    sync.push(is_final=True)

    back = tmp_path / "back"
    restore(place, back)

    links = {str(p.relative_to(back)): str(p.readlink()) for p in back.rglob("*") if p.is_symlink()}
    assert links == {
        "best.pt": "epoch-2.pt",
        "last.pt": "epoch-2.pt",
        "newest": "runs/latest",
        "runs/latest": "a",
    }
    assert (back / "newest/model.pt").read_bytes() == b"m"
    assert mirror(back, place, run_id="run-1").push(is_final=True).num_sent == 0


def test_a_link_that_became_a_file_comes_back_as_a_file(place, folder, tmp_path, write_tree):
    write_tree(folder, {"epoch-1.pt": b"1"})
    (folder / "best.pt").symlink_to("epoch-1.pt")
    sync = mirror(folder, place)
    sync.push(is_final=True)
    os.utime(folder / "epoch-1.pt", ns=(1, 1))
    (folder / "best.pt").unlink()
    shutil.copy2(folder / "epoch-1.pt", folder / "best.pt")

    sync.push(is_final=True)
    restore(place, tmp_path / "back")

    assert not (tmp_path / "back/best.pt").is_symlink()


def test_a_link_that_leads_to_something_else_by_now_comes_back_as_a_file(
    place, folder, tmp_path, write_tree
):
    write_tree(folder, {"epoch-1.pt": b"1"})
    (folder / "last.pt").symlink_to("epoch-1.pt")
    sync = mirror(folder, place)
    sync.push(is_final=True)
    index = index_of(place)
    index["links"] = {
        **dict.fromkeys(("last.pt", "../outside", "/etc/hostname"), "../outside"),
        "epoch-1.pt": "epoch-1.pt",
        "no-such": "epoch-1.pt",
    }
    place.put(index_path_of(place), json.dumps(index).encode())
    (tmp_path / "outside").write_bytes(b"1")

    restore(place, tmp_path / "back")

    assert not (tmp_path / "back/last.pt").is_symlink()
    assert (tmp_path / "back/epoch-1.pt").read_bytes() == b"1"
    assert not (tmp_path / "outside").is_symlink()


def test_nothing_saved_yet_restores_nothing_and_leaves_the_folder(place, folder, read_tree):
    (folder / "own.pt").write_bytes(b"1")

    assert restore(place, folder) == Restored(None, 0, 0)

    assert read_tree(folder) == {"own.pt": b"1"}
    assert place.paths() == [index_path_of(place), OWNER]
    assert json.loads(place.get(OWNER))["run_id"] == "run-1"


def test_after_a_restore_nothing_is_sent_again_and_deletes_are_known(place, folder, tmp_path):
    for step in (1, 2):
        save_step(folder, step)
    mirror(folder, place).push(is_final=True)
    journal, back = tmp_path / "journal", tmp_path / "back"

    restore(place, back, run_id="run-2", journal=journal)
    shutil.rmtree(back / "step-00000001")
    report = mirror(back, place, "run-2", journal=journal).push(is_final=True)

    assert (report.num_files, report.num_sent) == (3, 0)
    assert len(files_of(place.paths())) == 3


def test_the_folder_of_another_job_is_refused_and_untouched(place, folder, tmp_path):
    save_step(folder, 1)
    mirror(folder, place).push(is_final=True)
    before = {path: place.get(path) for path in place.paths()}

    for work in (
        lambda: restore(place, tmp_path / "back", job="other"),
        lambda: mirror(folder, place, job="other").push(is_final=False),
    ):
        with pytest.raises(CheckpointsOfAnother, match="with checkpoints of the job 'digits'"):
            work()

    assert {path: place.get(path) for path in place.paths()} == before
    assert not (tmp_path / "back").exists()


def test_a_folder_with_files_of_others_is_refused_and_untouched(place, folder, tmp_path):
    place.put("precious", b"1")

    for work in (
        lambda: restore(place, tmp_path / "back"),
        lambda: mirror(folder, place).push(is_final=False),
    ):
        with pytest.raises(CheckpointsOfAnother, match="not empty but 1 files, such as 'precious'"):
            work()

    assert place.paths() == ["precious"]


@pytest.mark.parametrize(
    "text", [b"", b"{}", b'{"format": 2, "job": "j", "run_id": "x", "files": []}']
)
@pytest.mark.parametrize("name", [OWNER, next_index([], "run-1")])
def test_bookkeeping_that_cannot_be_read_is_not_overwritten(place, folder, tmp_path, name, text):
    restore(place, tmp_path / "back")
    place.put(name, text)

    with pytest.raises(CorruptData, match="use the version of trainjob that wrote it"):
        mirror(folder, place).push(is_final=False)

    assert place.get(name) == text


def test_a_run_that_takes_the_folder_over_stops_the_other_one(place, folder, tmp_path):
    first = mirror(folder, place)
    save_step(folder, 1)
    first.push(is_final=False)
    restore(place, tmp_path / "second", run_id="run-2")
    save_step(folder, 2, b"of the first run")
    save_step(tmp_path / "second", 2, b"of the second run")

    mirror(tmp_path / "second", place, "run-2").push(is_final=False)
    with pytest.raises(CheckpointsOfAnother, match="in use by the run run-2") as caught:
        first.push(is_final=True)

    assert not caught.value.retryable
    restore(place, tmp_path / "third", run_id="run-3")
    assert (tmp_path / "third/step-00000002/model.pt").read_bytes() == b"of the second run"


def test_a_run_that_is_overtaken_in_the_middle_of_a_pass_changes_nothing(
    place, folder, tmp_path, monkeypatch
):
    first = mirror(folder, place)
    save_step(folder, 1)
    first.push(is_final=False)
    save_step(folder, 2, b"of the first run")
    shutil.rmtree(folder / "step-00000001")

    def overtake(name: str) -> None:
        if name == "upload":
            monkeypatch.undo()
            restore(place, tmp_path / "second", run_id="run-2")

    hook(monkeypatch, overtake)
    with pytest.raises(CheckpointsOfAnother, match="in use by the run run-2"):
        first.push(is_final=True)

    assert restore(place, tmp_path / "third", run_id="run-2").step == 1


def test_a_restore_that_another_run_overtakes_brings_nothing(place, folder, tmp_path, monkeypatch):
    save_step(folder, 1)
    mirror(folder, place).push(is_final=True)

    def overtake(name: str) -> None:
        if name == "download":
            monkeypatch.undo()
            restore(place, tmp_path / "second", run_id="run-2")

    hook(monkeypatch, overtake)
    with pytest.raises(CheckpointsOfAnother, match="in use by the run run-2"):
        restore(place, tmp_path / "first", run_id="run-1")

    assert not (tmp_path / "first").exists()


@pytest.mark.parametrize("damage", ["other bytes", "shorter", "gone"])
def test_a_damaged_step_is_left_out_for_the_one_before(place, folder, tmp_path, caplog, damage):
    for step in (1, 2):
        save_step(folder, step)
    mirror(folder, place).push(is_final=True)
    name = "step-00000002/model.pt"
    if damage == "gone":
        place.delete(name)
    else:
        place.put(name, b"wEights" if damage == "other bytes" else b"w")

    back = restore(place, tmp_path / "back", run_id="run-2")

    assert back == Restored(1, 3, 8, ("step-00000002",))
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["step-00000001"]
    assert "the checkpoint step-00000002 is damaged and is left out" in caplog.text
    again = restore(place, tmp_path / "again", run_id="run-3")
    assert again == Restored(1, 3, 8)


def test_when_no_step_is_whole_nothing_starts_anew_by_itself(place, folder, tmp_path, read_tree):
    save_step(folder, 1)
    mirror(folder, place).push(is_final=True)
    place.put("step-00000001/model.pt", b"wEights")
    target = tmp_path / "back"
    (target / "kept").mkdir(parents=True)

    with pytest.raises(CorruptData, match=r"model.pt: other bytes than were saved"):
        restore(place, target)

    assert [path.name for path in target.iterdir()] == ["kept"]


def test_a_step_of_another_program_does_not_stand_for_the_ones_that_are_damaged(
    place, folder, tmp_path, write_tree
):
    save_step(folder, 1)
    write_tree(folder, {"step-00000002/model.bin": b"2"})
    mirror(folder, place).push(is_final=True)
    place.put("step-00000001/model.pt", b"damaged")

    with pytest.raises(CorruptData):
        restore(place, tmp_path / "back")


def test_a_damaged_file_of_the_script_is_an_error(place, folder, tmp_path):
    save_step(folder, 1)
    (folder / "last.pt").write_bytes(b"1")
    mirror(folder, place).push(is_final=True)
    place.put("last.pt", b"2")

    with pytest.raises(CorruptData, match=r"last.pt: other bytes than were saved"):
        restore(place, tmp_path / "back")


def test_what_the_index_does_not_name_is_not_restored_and_is_swept(place, folder, tmp_path):
    save_step(folder, 1)
    mirror(folder, place).push(is_final=True)
    index = index_of(place)
    place.put("step-00000002/model.pt", b"half")
    index["pending"] = ["step-00000002/model.pt"]
    place.put(index_path_of(place), json.dumps(index).encode())

    assert restore(place, tmp_path / "back").step == 1
    mirror(tmp_path / "back", place).push(is_final=False)

    assert not any("step-00000002" in path for path in place.paths())


def test_a_hostile_path_in_an_index_is_refused(place, folder, tmp_path):
    save_step(folder, 1)
    mirror(folder, place).push(is_final=True)
    path = index_path_of(place)
    place.put(path, place.get(path).replace(b"step-00000001/model.pt", b"../../evil"))

    with pytest.raises(StoreError, match=r"has . or .. as a part"):
        restore(place, tmp_path / "back")


def test_a_restore_tells_how_far_it_is(place, folder, tmp_path):
    save_step(folder, 1)
    mirror(folder, place).push(is_final=True)
    events: list[Any] = []

    with listening(events.append):
        mirror(folder, place).push(is_final=True)
        restore(place, tmp_path / "back")

    assert events[-1] == Transferred("checkpoints", 3, 3, 8, 8)
    assert {event.label for event in events} == {"checkpoints"}
