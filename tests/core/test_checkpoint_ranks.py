"""Checkpoints of real ranks: what one knows all know, and where one fails all fail."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trainjob.checkpoint import Checkpoints, load

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SCRIPT = Path(__file__).with_name("checkpoint_on_two_ranks.py")
PATH = f"{BIN}{os.pathsep}{os.environ['PATH']}"


def on_ranks(
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
        name: [json.loads(file.read_text()) for file in sorted(folder.glob(f"{name}-?.json"))]
        for name in scenarios
    }
    return done.returncode, done.stdout, found


TORCHRUN = ["torchrun", "--standalone", "--nproc-per-node", "2"]
TORCHRUN_3 = [*TORCHRUN[:-1], "3"]
MPIRUN = ["mpirun", "-n", "2", sys.executable, "-m", "mpi4py"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gloo")


@pytest.fixture(scope="module")
def gloo(folder: Path) -> dict[str, list[Any]]:
    """What the scenarios gave on both ranks; started once, since a start takes seconds."""
    scenarios = (
        *("sharded", "one_rank_fails", "other_steps", "damaged", "ranks_see_other_folders"),
        *("best", "plain", "stop"),
    )
    state = {"w": torch.arange(10.0), "step": 5}
    Checkpoints(folder / "of_other_ranks").save(5, state, sharded=True)
    code, output, found = on_ranks(TORCHRUN, folder, *scenarios, "of_other_ranks")
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


def test_what_two_ranks_have_saved_in_parts_is_loaded_by_one_and_by_three(
    gloo: dict[str, list[Any]], folder: Path, tmp_path: Path
) -> None:
    saved = folder / "sharded" / gloo["sharded"][0]["name"]
    shutil.copytree(saved, tmp_path / "of_other_ranks" / saved.name)

    alone = load(saved, into={"w": torch.zeros(10), "step": 0})
    code, output, found = on_ranks(TORCHRUN_3, tmp_path, "of_other_ranks")

    assert alone["w"].tolist() == list(range(10))
    assert alone["step"] == 5
    assert code == 0, output
    ranks = found["of_other_ranks"]
    assert [rank["mine"] for rank in ranks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [rank["whole"] for rank in ranks] == [list(range(10))] * 3
    assert [rank["step"] for rank in ranks] == [5] * 3


def test_what_one_process_has_saved_is_loaded_by_two_ranks(gloo: dict[str, list[Any]]) -> None:
    ranks = gloo["of_other_ranks"]

    assert [rank["mine"] for rank in ranks] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert [rank["step"] for rank in ranks] == [5, 5]


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


def test_ranks_agree_on_the_best_checkpoint_also_while_rank_0_saves_it(
    gloo: dict[str, list[Any]],
) -> None:
    assert gloo["best"] == [["step-00000002", "step-00000002", None]] * 2


def test_ranks_that_save_parts_of_other_steps_are_refused_and_nothing_is_left(
    gloo: dict[str, list[Any]],
) -> None:
    first, second = gloo["other_steps"]

    assert first["told"] == second["told"]
    assert "step 10 on rank 0, step 11 on rank 1; save the same step on every" in first["told"]
    assert first["left"] == second["left"] == [".lock"]
    assert first["latest"] == "step-00000012"


def test_what_differs_from_rank_to_rank_is_kept_under_names_of_its_own(
    gloo: dict[str, list[Any]],
) -> None:
    assert [rank["stage"] for rank in gloo["other_steps"]] == [[0.0, 0.0], [1.0, 1.0]]


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
    code, output, found = on_ranks(TORCHRUN, tmp_path, "killed")

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
    scenarios = ("ranks_see_other_folders", "best", "plain", "stop", "shards_without_a_group")

    code, output, found = on_ranks(MPIRUN, tmp_path, "MPI", *scenarios)

    assert code == 0, output
    names = [Path(rank["latest"]).name for rank in found["ranks_see_other_folders"]]
    assert names == ["step-00000002", "step-00000002"]
    assert found["best"] == [["step-00000002", "step-00000002", None]] * 2
    assert [rank["same"] for rank in found["plain"]] == [True, True]
    assert [rank["of_all"] for rank in found["plain"]] == [["rank 0", "rank 1"]] * 2
    assert found["stop"] == [[False, False, True, True, True]] * 2
    for told in found["shards_without_a_group"]:
        assert "call init_process_group first, or save and load a plain state" in told
