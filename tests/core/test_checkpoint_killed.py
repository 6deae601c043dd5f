"""A process that is killed while it saves leaves every checkpoint complete or absent."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from tests.waiting import PATIENCE_S
from trainjob.checkpoint import Checkpoints, load
from trainjob.checkpoint_folder import Draft, complete_checkpoints

# Forked from a process that has torch and nothing else, neither the threads nor the audit hooks of
# other tests: a kill costs milliseconds.
_FORK = multiprocessing.get_context("forkserver")
_FORK.set_forkserver_preload(["torch", "trainjob.checkpoint"])
_FILE_EVENTS = ("open", "os.", "shutil.", "tempfile.", "fcntl.")


def state(step: int, size: int) -> dict[str, object]:
    return {"step": step, "weights": torch.full((size,), float(step))}


def newest_step(folder: Path) -> int:
    """Load the newest checkpoint and return its step; all of it must be of that step."""
    path = Checkpoints(folder).latest()
    assert path is not None
    loaded = load(path)
    assert path.name.startswith(f"step-{loaded['step']:08d}")
    assert torch.all(loaded["weights"] == loaded["step"])
    return int(loaded["step"])


def save_again_and_go_on(folder: Path) -> None:
    checkpoints = Checkpoints(folder, keep_last=2)
    checkpoints.save(3, state(3, 100))  # there already: replaced
    checkpoints.save(4, state(4, 100))  # and two others go


def go_back(folder: Path) -> None:
    Checkpoints(folder).save(1, state(1, 100) | {"line": 2})


def kill_self_at_file_operation(number: int, action: Callable[[Path], None], folder: Path) -> None:
    left = number

    def count(event: str, _: object) -> None:
        nonlocal left
        if event.startswith(_FILE_EVENTS) and event != "os.kill":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    action(folder)


def test_a_kill_at_any_file_operation_of_a_save_leaves_only_whole_checkpoints(
    tmp_path: Path,
) -> None:
    before = tmp_path / "before"
    for step in (1, 2, 3):
        Checkpoints(before).save(step, state(step, 100))
    found = []

    for number in range(1000):
        folder = tmp_path / str(number)
        shutil.copytree(before, folder)
        writer = _FORK.Process(
            target=kill_self_at_file_operation, args=(number, save_again_and_go_on, folder)
        )
        writer.start()
        writer.join()
        found.append(newest_step(folder))
        Checkpoints(folder, keep_last=2).save(5, state(5, 100))
        assert newest_step(folder) == 5
        assert len(list(folder.glob("step-*"))) == 2
        assert not list(folder.glob(".tmp-*"))
        if writer.exitcode == 0:
            break
        assert writer.exitcode == -signal.SIGKILL

    assert set(found) == {3, 4}
    assert found == sorted(found)
    assert len(found) > 50  # as many points to be killed at


def test_a_kill_while_later_checkpoints_are_set_aside_mixes_no_trainings(tmp_path: Path) -> None:
    before = tmp_path / "before"
    for step in (1, 2, 3):
        Checkpoints(before).save(step, state(step, 100) | {"line": 1})
    found = []

    for number in range(1000):
        folder = tmp_path / str(number)
        shutil.copytree(before, folder)
        writer = _FORK.Process(target=kill_self_at_file_operation, args=(number, go_back, folder))
        writer.start()
        writer.join()
        [line] = {load(saved.path)["line"] for saved in complete_checkpoints(folder)[0]}
        found.append((line, newest_step(folder)))
        kept = {path.name.removesuffix(".aside") for path in folder.glob("step-*")}
        assert kept == {"step-00000001", "step-00000002", "step-00000003"}
        if writer.exitcode == 0:
            break

    assert list(dict.fromkeys(found)) == [(1, 3), (1, 2), (2, 1)]


def save_for_ever(folder: Path, is_saving: Event) -> None:
    torch.set_num_threads(1)  # those of the parent are not here after the fork
    step = newest_step(folder)
    is_saving.set()
    while True:
        step += 1
        Checkpoints(folder, keep_last=2).save(step, state(step, 300_000))


def test_a_kill_at_any_moment_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    moments = random.Random(0)
    steps = [1]
    begun = time.monotonic()
    Checkpoints(tmp_path).save(1, state(1, 300_000))
    save_s = max(0.01, time.monotonic() - begun)

    for _ in range(25):
        is_saving = _FORK.Event()
        writer = _FORK.Process(target=save_for_ever, args=(tmp_path, is_saving))
        writer.start()
        assert is_saving.wait(PATIENCE_S)
        writer.join(timeout=moments.uniform(0.2, 5) * save_s)
        writer.kill()
        writer.join()
        steps.append(newest_step(tmp_path))

    assert steps == sorted(steps)
    assert steps[-1] > 1
    assert len(list(tmp_path.glob("step-*"))) <= 4  # the kept, one more, and one to be removed


def save_beside_a_fork(folder: Path) -> None:
    torch.set_num_threads(1)
    draft = Draft(folder, 1)
    ours, workers = os.pipe()
    if os.fork() == 0:  # as the worker of a loader, while another thread saves
        os.close(workers)
        os.read(ours, 1)  # until its parent ends
        os._exit(0)
    draft.close()
    Checkpoints(folder).save(2, state(2, 100))


def test_a_process_forked_amid_a_save_does_not_keep_others_from_saving(tmp_path: Path) -> None:
    writer = _FORK.Process(target=save_beside_a_fork, args=(tmp_path,))
    writer.start()
    writer.join(timeout=PATIENCE_S)
    writer.kill()
    writer.join()

    assert writer.exitcode == 0
    assert newest_step(tmp_path) == 2
