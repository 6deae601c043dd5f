"""Ranks that the program of a rank starts itself: of those too, what rank 0 reports counts."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainjob.launch.launch import Launch

REPORT = """
    import os
    from trainjob.progress import report, should_stop

    rank = int(os.environ["RANK"])
    for step in range(1, 4):
        report(step, total=3, accuracy=0.1 + rank)
    print("asked", rank, should_stop(), flush=True)
"""

SPAWN = """
    import tempfile, torch.distributed as dist, torch.multiprocessing as mp
    from trainjob.progress import report

    def train(rank, url):
        dist.init_process_group("gloo", init_method=url, rank=rank, world_size=2)
        for step in range(1, 4):
            report(step, total=3, accuracy=0.1 + rank)
        dist.destroy_process_group()

    if __name__ == "__main__":
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(train, (f"file://{folder}/store",), 2)
"""


def reports(launch: Launch, rank: int = 0) -> list[dict[str, Any]]:
    file = Path(launch.records_dir, f"progress-{rank}.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_of_the_ranks_of_a_command_rank_0_reports_and_all_may_ask_whether_to_stop(
    make_launch, watch
):
    inner = ("python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    launch = make_launch(REPORT, command=(*inner, "train.py"))

    ran = watch(launch)

    assert sorted(line for line in ran.lines() if line.startswith("asked")) == [
        "asked 0 False",
        "asked 1 False",
    ]
    assert {line["metrics"]["accuracy"] for line in reports(launch)} == {0.1}
    assert reports(launch)[-1]["step"] == 3


@pytest.mark.mpi
def test_of_the_ranks_of_a_command_with_mpirun_rank_0_reports(make_launch, watch):
    script = """
        from mpi4py import MPI
        from trainjob.progress import report
        report(3, total=3, accuracy=0.1 + MPI.COMM_WORLD.rank)
        print("rank", MPI.COMM_WORLD.rank, flush=True)
    """
    launch = make_launch(script, command=("mpirun", "-n", "2", "python", "train.py"))

    ran = watch(launch)

    assert sorted(ran.lines()) == ["rank 0", "rank 1"]
    assert [line["metrics"]["accuracy"] for line in reports(launch)] == [0.1]


def test_of_processes_that_a_script_spawns_rank_0_reports(make_launch, watch):
    launch = make_launch(SPAWN)

    watch(launch)

    assert {line["metrics"]["accuracy"] for line in reports(launch)} == {0.1}
    assert reports(launch)[-1]["step"] == 3


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("mpi", marks=pytest.mark.mpi)])
@pytest.mark.parametrize("is_script", [True, False])
def test_every_rank_of_a_launcher_reports_to_its_own_file(make_launch, watch, launcher, is_script):
    # Not exec: the shell is what the launch has started, and the Python below it is the rank, too.
    command = ("train.py",) if is_script else ("sh", "-c", "python train.py; exit $?")
    launch = make_launch(
        REPORT, command=command, is_script=is_script, launcher=launcher, world_size=2
    )

    watch(launch)

    for rank in range(2):
        assert {line["metrics"]["accuracy"] for line in reports(launch, rank)} == {0.1 + rank}
        assert reports(launch, rank)[-1]["step"] == 3


def test_a_rank_that_gives_itself_another_number_still_reports(make_launch, watch):
    """As a script does that is started on several machines, each in a job of its own."""
    script = """
        import os
        import torch.distributed as dist
        import torch.testing._internal.distributed.fake_pg  # a group without the other machine
        from trainjob.progress import report

        os.environ["RANK"] = "1"
        dist.init_process_group("fake", store=dist.HashStore(), rank=1, world_size=2)
        report(3, total=3, accuracy=0.5)
        dist.destroy_process_group()
    """
    launch = make_launch(script)

    watch(launch)

    assert [line["step"] for line in reports(launch)] == [3]
