"""The claim of a checkpoint folder and the index of its owner, as they lie in a store."""

import json
import os
import shutil
from dataclasses import replace

import pytest

from tests.core.storage.checkpoints import (
    Killed,
    hook,
    index_of,
    index_path_of,
    mirror,
    owner_of,
    restore,
    save_step,
)
from tests.core.storage.conftest import LocalPlace
from tests.s3_faults import fault_proxy
from trainjob.errors import CheckpointsOfAnother
from trainjob.storage.checkpoint_claim import OWNER
from trainjob.storage.checkpoint_index import next_index
from trainjob.storage.checkpoint_mirror import CheckpointMirror
from trainjob.storage.probe import checkpoint_problems


def test_a_folder_that_is_claimed_and_still_empty_is_that_of_the_job(place, tmp_path, monkeypatch):
    num_writes = 0

    def kill(name: str) -> None:
        nonlocal num_writes
        num_writes += name == "write"
        if num_writes == 2:
            raise Killed

    hook(monkeypatch, kill)
    with pytest.raises(Killed):
        restore(place, tmp_path / "first")
    monkeypatch.undo()

    assert place.paths() == [OWNER]
    assert checkpoint_problems("c.url", place.url, place.settings, job="digits") == []
    (problem,) = checkpoint_problems("c.url", place.url, place.settings, job="mnist")
    assert "with checkpoints of the job 'digits'; use another folder" in str(problem)
    with pytest.raises(CheckpointsOfAnother, match="with checkpoints of the job 'digits'"):
        restore(place, tmp_path / "other", job="mnist", run_id="run-2")
    assert restore(place, tmp_path / "second", run_id="run-2").num_files == 0
    assert owner_of(place) == "run-2"


def test_an_index_that_arrives_after_the_take_over_does_not_count(place, folder, tmp_path):
    """A network may keep a request for minutes and deliver it then."""
    save_step(folder, 1)
    mirror(folder, place).push(is_final=True)
    late = place.get(next_index([], "run-1"))
    restore(place, tmp_path / "second", run_id="run-2")
    save_step(tmp_path / "second", 2)
    shutil.rmtree(tmp_path / "second" / "step-00000001")
    mirror(tmp_path / "second", place, "run-2").push(is_final=True)

    place.put(next_index([], "run-1"), late)

    assert restore(place, tmp_path / "third", run_id="run-3").step == 2
    assert next_index([], "run-1") not in place.paths()


def test_a_folder_that_somebody_empties_under_a_run_is_filled_again(
    place, folder, tmp_path, monkeypatch
):
    sync = mirror(folder, place)
    save_step(folder, 1)
    sync.push(is_final=False)
    save_step(folder, 2)

    def empty(name: str) -> None:
        if name == "upload" and OWNER in place.paths():
            for path in place.paths():
                place.delete(path)

    hook(monkeypatch, empty)
    sync.push(is_final=False)
    monkeypatch.undo()
    sync.push(is_final=False)

    assert restore(place, tmp_path / "second", run_id="run-2").num_files == 6


def test_a_run_id_of_any_form_names_an_index(place, folder, tmp_path):
    name = "../a b/ü%#?.json"
    save_step(folder, 1)

    mirror(folder, place, name).push(is_final=False)
    mirror(folder, place, name).push(is_final=False)

    assert restore(place, tmp_path / "back", run_id="run-2").step == 1


def test_nothing_is_deleted_without_a_look_whose_the_folder_is(
    place, folder, tmp_path, monkeypatch
):
    """What the run that loses is about to delete may be what the other one has just sent."""
    save_step(folder, 1)
    mirror(folder, place).push(is_final=True)
    index = index_of(place)
    index["pending"] = ["step-00000002/model.pt"]
    place.put(index_path_of(place), json.dumps(index).encode())
    num_calls = 0

    def take_over(name: str) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 4:  # after whose it is, what there is, what counts
            monkeypatch.undo()
            restore(place, tmp_path / "second", run_id="run-2")
            save_step(tmp_path / "second", 2)
            mirror(tmp_path / "second", place, "run-2").push(is_final=True)

    hook(monkeypatch, take_over)
    with pytest.raises(CheckpointsOfAnother, match="in use by the run run-2"):
        mirror(folder, place).push(is_final=True)

    assert restore(place, tmp_path / "third", run_id="run-3").step == 2


def test_a_temporary_file_of_a_claim_is_not_swept_by_the_run_that_loses(tmp_path, folder):
    place = LocalPlace(tmp_path / "place")
    save_step(folder, 1)
    mirror(folder, place).push(is_final=True)
    place.put("_trainjob/partial-young", b"the claim of another run")
    place.put("_trainjob/partial-old", b"of a process that was killed")
    os.utime(place.root / "_trainjob/partial-old", (0, 0))

    mirror(folder, place).push(is_final=True)

    assert "_trainjob/partial-young" in place.paths()
    assert "_trainjob/partial-old" not in place.paths()


def test_a_pass_makes_no_more_requests_than_it_needs(s3, s3_place, folder):
    with fault_proxy(s3.port, lambda method, path: None) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        sync = CheckpointMirror(folder, s3_place.url, settings, job="digits", run_id="run-1")
        save_step(folder, 1)
        sync.push(is_final=False)
        proxy.requests.clear()

        sync.push(is_final=False)
        idle = [method for method, _ in proxy.requests]
        proxy.requests.clear()
        (folder / "step-00000001").rename(folder / "step-00000002")
        sync.push(is_final=False)
        busy = [method for method, _ in proxy.requests]

    assert idle == ["GET"] * 3  # whose it is, what there is, what counts
    # Two more writes of the index, each with a look whose the folder is; three files, which one
    # listing proves.
    assert (busy.count("PUT"), busy.count("GET")) == (2 + 3, 3 + 2 + 1)


@pytest.mark.parametrize("path_of", [index_path_of, lambda place: OWNER])
def test_bookkeeping_that_cannot_be_read_is_told_before_a_run(place, tmp_path, path_of):
    restore(place, tmp_path / "back")
    place.put(path_of(place), b"{")

    (problem,) = checkpoint_problems("c.url", place.url, place.settings, job="digits")

    assert "that cannot be read; use the version of trainjob that wrote it" in str(problem)
