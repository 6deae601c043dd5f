"""Checkpoints of two real ranks: what one knows all know, and where one fails all fail."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainjob.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SCRIPT = Path(__file__).with_name("checkpoint_on_two_ranks.py")
PATH = f"{BIN}{os.pathsep}{os.environ['PATH']}"


def on_two_ranks(
    launcher: list[str], folder: Path, *scenarios: str
) -> tuple[int, str, dict[str, list[Any]]]:
    done = subprocess.run(
        [*launcher, str(SCRIPT), str(folder), *scenarios],
        env=os.environ | {"PATH": PATH, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    found = {
        name: [
            json.loads(file.read_text())
            for rank in range(2)
            if (file := folder / f"{name}-{rank}.json").exists()
        ]
        for name in scenarios
    }
    return done.returncode, done.stdout, found


TORCHRUN = ["torchrun", "--standalone", "--nproc-per-node", "2"]
MPIRUN = ["mpirun", "-n", "2", sys.executable, "-m", "mpi4py"]


@pytest.fixture(scope="module")
def gloo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What the scenarios gave on both ranks; started once, since a start takes seconds."""
    scenarios = ("sharded", "one_rank_fails", "damaged", "ranks_see_other_folders", "plain", "stop")
    code, output, found = on_two_ranks(TORCHRUN, tmp_path_factory.mktemp("gloo"), *scenarios)
    assert code == 0, output
    return found


def test_every_rank_writes_and_reads_its_part(gloo: dict[str, list[Any]]) -> None:
    first, second = gloo["sharded"]

    assert first["name"] == second["name"] == "step-00000005"
    assert first["mine"] == [0, 1, 2, 3, 4]
    assert second["mine"] == [5, 6, 7, 8, 9]
    assert first["whole"] == second["whole"] == list(range(10))
    assert first["files"] == [".metadata", "COMPLETE", "__0_0.distcp", "__1_0.distcp"]
    assert first["num_rng"] == 2


def test_where_one_rank_fails_all_fail_and_nothing_is_left_or_lost(
    gloo: dict[str, list[Any]],
) -> None:
    first, second = gloo["one_rank_fails"]

    assert first["told"] == second["told"]
    writing, state_dict, folder = first["told"]
    assert "rank 1" in writing
    assert "pickle" in writing
    assert "rank 1 failed with KeyError: 'no such layer'" in state_dict
    assert "rank 0 failed with CheckpointError: checkpoint of step 2: asked for a new" in folder
    assert first["left"] == [".lock", "step-00000001"]
    assert first["latest"].endswith("step-00000002")


def test_a_damaged_shard_is_passed_over_by_all_ranks(gloo: dict[str, list[Any]]) -> None:
    first, second = gloo["damaged"]

    assert first == second
    assert first["latest"].endswith("step-00000001")
    assert "of 0 bytes instead of" in first["told"]


def test_ranks_agree_on_the_newest_checkpoint_that_all_see(gloo: dict[str, list[Any]]) -> None:
    names = [Path(rank["latest"]).name for rank in gloo["ranks_see_other_folders"]]

    assert names == ["step-00000002", "step-00000002"]
    assert [rank["none"] for rank in gloo["ranks_see_other_folders"]] == [None, None]


def test_rank_0_writes_a_plain_state_and_each_rank_gets_its_random_numbers_back(
    gloo: dict[str, list[Any]],
) -> None:
    first, second = gloo["plain"]

    assert first["same"]
    assert second["same"]
    assert first["first"] != second["first"]
    assert first["of_all"] == second["of_all"] == ["rank 0", "rank 1"]
    assert first["marker"] == 2


def test_all_ranks_stop_in_the_same_step_though_one_was_asked(gloo: dict[str, list[Any]]) -> None:
    assert gloo["stop"] == [[False, False, True, True, True]] * 2


def test_a_rank_killed_in_a_save_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    code, output, found = on_two_ranks(TORCHRUN, tmp_path, "killed")

    assert code != 0
    assert found["killed"] in ([], ["RuntimeError"]), output  # [] where it was told to leave first
    folder = tmp_path / "killed"
    assert Checkpoints(folder).latest() == folder / "step-00000001"
    Checkpoints(folder).save(3, {})
    left = sorted(path.name for path in folder.iterdir())
    assert left == [".lock", "step-00000001", "step-00000003"]


@pytest.mark.mpi
def test_mpi_ranks_without_a_process_group_agree_too(tmp_path: Path) -> None:
    pytest.importorskip("mpi4py", reason="the extra mpi is not installed")
    if shutil.which("mpirun", path=PATH) is None:
        pytest.skip("mpirun is not on PATH")
    scenarios = ("ranks_see_other_folders", "plain", "stop", "shards_without_a_group")

    code, output, found = on_two_ranks(MPIRUN, tmp_path, "MPI", *scenarios)

    assert code == 0, output
    names = [Path(rank["latest"]).name for rank in found["ranks_see_other_folders"]]
    assert names == ["step-00000002", "step-00000002"]
    assert [rank["same"] for rank in found["plain"]] == [True, True]
    assert [rank["of_all"] for rank in found["plain"]] == [["rank 0", "rank 1"]] * 2
    assert found["stop"] == [[False, False, True, True, True]] * 2
    for told in found["shards_without_a_group"]:
        assert "call init_process_group first, or save and load a plain state" in told
