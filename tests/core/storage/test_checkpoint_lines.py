"""A training that goes on from an earlier step, and its checkpoints in a store."""

from contextlib import closing
from pathlib import Path

import pytest

from tests.core.storage.checkpoints import mirror, restore
from trainjob.checkpoint_folder import Draft, Marker, complete_checkpoints


def save(folder: Path, step: int, line: str) -> None:
    """What trainjob.checkpoint does, without torch."""
    with closing(Draft(folder, step)) as draft:
        (draft.path / "state.pt").write_text(f"{line} {step}")
        files = {"state.pt": len(f"{line} {step}")}
        marker = Marker(step, "plain", files, {}, world_size=1, run_id=None, torch="")
        draft.complete(marker, keep_last=3, best=None)


def texts(folder: Path) -> list[str]:
    """Return what the checkpoints hold from which a training may go on."""
    complete, damaged = complete_checkpoints(folder)
    assert damaged == []
    return [(saved.path / "state.pt").read_text() for saved in complete]


@pytest.mark.parametrize("is_final", [True, False])
def test_a_training_that_went_back_goes_on_from_there_on_another_machine(
    place, folder, tmp_path, is_final
):
    sync = mirror(folder, place)
    for step in (700, 800, 900):
        save(folder, step, "first")
    sync.push(is_final=False)
    for step in (200, 300):
        save(folder, step, "second")
    reports = [sync.push(is_final=is_final) for _ in range(1 if is_final else 2)]

    restored = restore(place, tmp_path / "other", run_id="run-2")

    assert reports[-1].missing == ()
    assert restored.step == 300
    assert texts(tmp_path / "other") == ["second 200", "second 300"]
    aside = tmp_path / "other" / "step-00000900.aside"
    assert (aside / "state.pt").read_text() == "first 900"
    aside.rename(aside.with_suffix(""))
    assert texts(tmp_path / "other")[-1] == "first 900"


def test_a_step_that_lost_its_marker_is_whole_in_the_store_again(place, folder, tmp_path):
    sync = mirror(folder, place)
    for step in (3, 6):
        save(folder, step, "first")
    sync.push(is_final=False)
    (folder / "step-00000006" / "COMPLETE").unlink()
    sync.push(is_final=False)
    save(folder, 6, "again")
    sync.push(is_final=True)

    restore(place, tmp_path / "other", run_id="run-2")

    assert texts(tmp_path / "other") == ["first 3", "again 6"]
