"""Whenever the saving ends, what is in the store is a whole set, older or newer."""

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.core.storage.checkpoints import (
    Killed,
    hook,
    mirror,
    restore,
    save_step,
)
from tests.core.storage.conftest import LocalPlace
from tests.s3_faults import fault_proxy
from trainjob.errors import StoreDenied
from trainjob.storage.checkpoint_mirror import CheckpointMirror
from trainjob.storage.checkpoint_restore import went_on_elsewhere

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def scene(folder, write_tree):
    """A folder that is saved, and then changes in every way that a folder can."""

    def prepare(place) -> None:
        shutil.rmtree(folder)
        for step in (1, 2):
            save_step(folder, step, b"old %d" % step)
        write_tree(folder, {"last.pt": b"old", "optimizer.pt": b"old", "gone.pt": b"old"})
        mirror(folder, place).push(is_final=True)
        shutil.rmtree(folder / "step-00000001")
        shutil.rmtree(folder / "step-00000002")
        save_step(folder, 2, b"new 2")
        save_step(folder, 3, b"new 3")
        (folder / "gone.pt").unlink()
        write_tree(folder, {"last.pt": b"new", "optimizer.pt": b"new", "added.pt": b"new"})

    return prepare


def check_restored(tree: dict[str, bytes]) -> None:
    """The set is the one before or after every step of the change, and nothing between."""
    loose = {name: data for name, data in tree.items() if "/" not in name}
    assert set(loose.values()) in ({b"old"}, {b"new"}) or (
        # Files are deleted after all others were saved.
        loose == {"last.pt": b"new", "optimizer.pt": b"new", "added.pt": b"new", "gone.pt": b"old"}
    )
    assert {"last.pt", "optimizer.pt"} <= set(loose)
    steps = {name.partition("/")[0] for name in tree} - set(loose)
    assert steps >= {"step-00000002"}
    for step in steps:
        number = int(step[5:])
        assert tree[f"{step}/COMPLETE"] == b""
        assert tree[f"{step}/.metadata"] == b"%d" % number
        assert tree[f"{step}/model.pt"] in (b"old %d" % number, b"new %d" % number)


def test_a_kill_at_any_moment_leaves_a_whole_set(scene, folder, tmp_path, read_tree, monkeypatch):
    scene(LocalPlace(tmp_path / "before"))
    calls = 0
    for kill_at in range(1, 1000):
        place = LocalPlace(tmp_path / f"place-{kill_at}")
        shutil.copytree(tmp_path / "before", place.root)
        left = [kill_at]

        def tell(name: str, left=left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        hook(monkeypatch, tell)
        try:
            mirror(folder, place).push(is_final=True)
        except Killed:
            calls += 1
        monkeypatch.undo()
        restore(place, tmp_path / f"back-{kill_at}", run_id="run-1")
        check_restored(read_tree(tmp_path / f"back-{kill_at}"))
        mirror(folder, place).push(is_final=True)
        assert restore(place, tmp_path / "end").step == 3
        assert read_tree(tmp_path / "end").items() >= read_tree(folder).items()
        if left[0] > 0:
            break

    assert calls > 30


def test_a_kill_at_any_moment_is_not_taken_for_another_machine(
    folder, tmp_path, write_tree, monkeypatch
):
    """Then older checkpoints of the store would replace what the run has saved since."""

    def change(content: bytes) -> None:
        for step in (1, 2):
            shutil.rmtree(folder / f"step-{step:08d}", ignore_errors=True)
            save_step(folder, step, content)
        write_tree(folder, {"last.pt": content})

    def push_and_kill(kill_at: int) -> bool:
        left = [kill_at]

        def tell(name: str) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        hook(monkeypatch, tell)
        try:
            mirror(folder, place, journal=journal).push(is_final=True)
        except Killed:
            return True
        finally:
            monkeypatch.undo()
        return False

    place, journal = LocalPlace(tmp_path / "place"), tmp_path / "journal"
    change(b"old")
    mirror(folder, place, journal=journal).push(is_final=True)
    shutil.copytree(place.root, tmp_path / "before")
    shutil.copy(journal, tmp_path / "journal-before")
    was_killed, kill_at = True, 0
    while was_killed:
        kill_at += 1
        shutil.rmtree(place.root)
        shutil.copytree(tmp_path / "before", place.root)
        shutil.copy(tmp_path / "journal-before", journal)
        for content in (b"new", b"newer"):  # killed by chance in the same moment again
            change(content)
            was_killed = push_and_kill(kill_at)

            found = went_on_elsewhere(
                place.url, place.settings, job="digits", run_id="run-1", journal=journal
            )

            assert not found, (kill_at, content)

    assert kill_at > 20


@pytest.mark.parametrize("refuse_from", range(6, 44, 14))
def test_a_store_that_stops_in_the_middle_leaves_a_whole_set(
    s3, s3_place, scene, folder, tmp_path, read_tree, refuse_from
):
    scene(s3_place)
    left = [refuse_from]

    def refuse(method: str, path: str) -> Any:
        left[0] -= 1
        return "403" if left[0] <= 0 else None

    with fault_proxy(s3.port, refuse) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        sync = CheckpointMirror(folder, s3_place.url, settings, job="digits", run_id="run-1")
        with pytest.raises(StoreDenied):
            sync.push(is_final=True)

    restore(s3_place, tmp_path / "back")
    check_restored(read_tree(tmp_path / "back"))
    mirror(folder, s3_place).push(is_final=True)
    assert restore(s3_place, tmp_path / "end").step == 3


PUSHING = """
import itertools, os, shutil, sys
from pathlib import Path
from trainjob.storage.checkpoint_mirror import CheckpointMirror

folder, url = Path(sys.argv[1]), sys.argv[2]
mirror = CheckpointMirror(folder, url, None, job="digits", run_id="r")
for i in itertools.count(int(sys.argv[3])):
    partial = folder / ".tmp-step"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in "abc":
        (partial / name).write_bytes(b"%d" % i * 100_000)
    (partial / "COMPLETE").touch()
    partial.rename(folder / f"step-{i:08d}")
    shutil.rmtree(folder / f"step-{i - 2:08d}", ignore_errors=True)
    for name in ("last.pt", "optimizer.pt"):
        (folder / name).write_bytes(b"%d" % i * 100_000)
    mirror.push(is_final=i % 3 == 0)
    print(i, flush=True)
"""


def test_a_process_that_is_killed_leaves_a_whole_set(folder, tmp_path, read_tree):
    step = 0
    for i in range(2):
        command = [sys.executable, "-c", PUSHING, folder, f"file://{tmp_path}/place", str(step + 1)]
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(4):
                reached = int(process.stdout.readline())
            deadline = time.monotonic() + 0.02 * (i + 1)  # somewhere in a pass
            while time.monotonic() < deadline:
                pass
            process.kill()
        shutil.rmtree(folder)

        back = restore(LocalPlace(tmp_path / "place"), folder, run_id="r")

        tree = read_tree(folder)
        assert back.step is not None
        assert back.step >= reached - 1
        assert tree["last.pt"] == tree["optimizer.pt"]
        for name, data in tree.items():
            if "/" in name and not name.endswith("COMPLETE"):
                assert data == b"%d" % int(name[5:13]) * 100_000
        step = back.step
