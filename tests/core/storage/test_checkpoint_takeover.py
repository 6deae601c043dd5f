"""Two runs and one folder: whoever claims it last has it, at whatever moment that happens.

Every test forces an order of events: before the n-th call to the store of one run, for every n,
another run does its part.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.core.storage.checkpoints import (
    Killed,
    hook,
    index_of,
    mirror,
    owner_of,
    restore,
    save_step,
)
from tests.core.storage.conftest import LocalPlace
from trainjob.errors import CheckpointsOfAnother
from trainjob.storage.checkpoint_mirror import CheckpointMirror
from trainjob.storage.sync import SyncReport

TAKEN_OVER = "in use by the run {}, which took it over from {};"


@pytest.fixture
def each_call(monkeypatch, tmp_path, write_tree) -> Callable[..., Iterator[LocalPlace]]:
    """Give a place and a folder again and again; see `orders`."""

    def orders(event: Callable[[LocalPlace, str], None]) -> Iterator[LocalPlace]:
        """Let `event` happen before the first call to the store, before the second, and so on.

        Every place that is given holds steps 1 and 2, last.pt and gone.pt of run-1; in the folder
        ``run`` beside it, step 1 and gone.pt were deleted since, and step 3 and last.pt written.
        """
        for number in itertools.count(1):
            place = LocalPlace(tmp_path / f"{number}" / "store")
            run = place.root.parent / "run"
            for step in (1, 2):
                save_step(run, step)
            write_tree(run, {"last.pt": b"old", "gone.pt": b"old"})
            mirror(run, place).push(is_final=True)
            shutil.rmtree(run / "step-00000001")
            (run / "gone.pt").unlink()
            save_step(run, 3)
            write_tree(run, {"last.pt": b"new"})
            left = [number]

            def tell(name: str, place=place, left=left) -> None:
                left[0] -= 1
                if left[0] == 0:
                    monkeypatch.undo()  # the other run opens stores without a hook
                    event(place, name)

            hook(monkeypatch, tell)
            yield place
            monkeypatch.undo()
            shutil.rmtree(place.root.parent)
            if left[0] > 0:
                assert number > 5
                break

    return orders


def folder_of(place: LocalPlace, run_id: str) -> Path:
    return place.root.parent / run_id


def restored(place: LocalPlace, run_id: str, read_tree) -> dict[str, bytes]:
    restore(place, folder_of(place, run_id), run_id=run_id)
    tree: dict[str, bytes] = read_tree(folder_of(place, run_id))
    return tree


def refusal(work: Callable[..., object], *args: object) -> str:
    """Do something and return why it was refused; nothing if it was not."""
    try:
        work(*args)
    except CheckpointsOfAnother as error:
        return str(error)
    return ""


def save_last(place: LocalPlace) -> SyncReport:
    """The last pass of run-1."""
    return mirror(place.root.parent / "run", place).push(is_final=True)


def check_whole(tree: dict[str, bytes]) -> None:
    """The set is one that the first run has seen counting."""
    steps = {name.partition("/")[0] for name in tree if "/" in name}
    loose = {name: data for name, data in tree.items() if "/" not in name}
    assert "step-00000002" in steps
    assert all(f"{step}/{name}" in tree for step in steps for name in ("COMPLETE", "model.pt"))
    assert loose["last.pt"] in (b"old", b"new")


def test_a_run_that_loses_the_folder_in_a_pass_notices_and_changes_nothing_that_counts(
    each_call, read_tree
):
    found: list[dict[str, bytes]] = []

    def take_over(place: LocalPlace, name: str) -> None:
        found.append(restored(place, "run-2", read_tree))

    for place in each_call(take_over):
        found.clear()

        told = refusal(save_last, place)

        if not found:  # the pass had ended
            assert told == ""
            continue
        assert TAKEN_OVER.format("run-2", "run-1") in told
        check_whole(found[0])
        assert owner_of(place) == "run-2"
        assert restored(place, "run-3", read_tree) == found[0]


def test_what_the_winner_saves_stands_whatever_the_loser_was_about_to_do(
    each_call, read_tree, write_tree
):
    """The winner makes whole passes before the one call of the loser that was under way."""
    second: list[CheckpointMirror] = []

    def take_over(place: LocalPlace, name: str) -> None:
        folder = folder_of(place, "run-2")
        restore(place, folder, run_id="run-2", journal=place.root.parent / "journal")
        save_step(folder, 4)
        write_tree(folder, {"own.pt": b"of run-2"})
        if name != "upload":  # see the docstring of checkpoint_store for what is possible then
            shutil.rmtree(folder / "step-00000003", ignore_errors=True)
            save_step(folder, 3, b"of run-2")
            write_tree(folder, {"last.pt": b"of run-2", "gone.pt": b"of run-2"})
        sync = mirror(folder, place, "run-2", journal=place.root.parent / "journal")
        sync.push(is_final=True)
        second.append(sync)

    for place in each_call(take_over):
        second.clear()

        told = refusal(save_last, place)

        if not second:
            assert told == ""
            continue
        assert TAKEN_OVER.format("run-2", "run-1") in told
        report = second[0].push(is_final=True)
        assert report.missing == ()
        kept = read_tree(folder_of(place, "run-2"))
        assert restored(place, "run-3", read_tree) == kept
        assert {file["path"] for file in index_of(place)["files"]} == kept.keys()


def test_a_run_that_takes_over_gets_a_whole_set_whatever_the_loser_does_meanwhile(
    each_call, read_tree, monkeypatch
):
    told: list[str] = []

    def save(place: LocalPlace, name: str) -> None:
        told.append(refusal(save_last, place))

    orders = set()
    for place in each_call(save):
        told.clear()

        tree = restored(place, "run-2", read_tree)

        monkeypatch.undo()
        check_whole(tree)
        assert owner_of(place) == "run-2"
        if told:
            assert told[0] == "" or TAKEN_OVER.format("run-2", "run-1") in told[0]
            orders.add((told[0] == "", "step-00000003/model.pt" in tree))
        assert restored(place, "run-3", read_tree) == tree

    # Before the claim the other run saves, and after it nothing of it counts.
    assert orders == {(True, True), (False, False)}


def test_of_two_runs_that_take_over_at_once_the_last_one_to_claim_wins(
    each_call, read_tree, monkeypatch
):
    trees: list[dict[str, bytes]] = []

    def take_over(place: LocalPlace, name: str, run_id="run-3") -> None:
        trees.append(restored(place, run_id, read_tree))

    winners = set()
    for place in each_call(take_over):
        trees.clear()

        told = refusal(take_over, place, "", "run-2")

        monkeypatch.undo()
        winner = owner_of(place)
        winners.add(winner)
        assert (told == "") == (winner == "run-2")
        if told:
            assert TAKEN_OVER.format("run-3", "run-2") in told
            assert not folder_of(place, "run-2").exists()
        check_whole(trees[-1])
        assert restored(place, "run-4", read_tree) == trees[-1]

    assert winners == {"run-2", "run-3"}


def test_a_kill_at_any_moment_of_a_take_over_leaves_a_whole_set_for_the_next_run(
    each_call, read_tree
):
    def kill(place: LocalPlace, name: str) -> None:
        raise Killed

    for place in each_call(kill):
        try:
            restored(place, "run-2", read_tree)
        except Killed:
            check_whole(restored(place, "run-3", read_tree))


def test_a_run_that_was_killed_when_it_took_over_goes_on(place, folder, tmp_path, monkeypatch):
    save_step(folder, 1)
    mirror(folder, place).push(is_final=True)
    num_writes = 0

    def kill(name: str) -> None:
        nonlocal num_writes
        num_writes += name == "write"
        if num_writes == 2:
            raise Killed

    hook(monkeypatch, kill)
    with pytest.raises(Killed):
        restore(place, tmp_path / "second", run_id="run-2")
    monkeypatch.undo()
    save_step(tmp_path / "second", 2)

    report = mirror(tmp_path / "second", place, "run-2").push(is_final=True)

    assert (report.num_files, owner_of(place)) == (6, "run-2")
    with pytest.raises(CheckpointsOfAnother, match=TAKEN_OVER.format("run-2", "run-1")):
        mirror(folder, place).push(is_final=True)
