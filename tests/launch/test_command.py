import sys
from dataclasses import replace
from pathlib import Path

import pytest

from trainjob.launch import command
from trainjob.launch.command import launcher_argv
from trainjob.launch.launch import Launch
from trainjob.launch.mpi import Mpirun


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Launch:
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")
    monkeypatch.setattr(command, "_BOOTSTRAP", Path("/lib/bootstrap.py"))
    return Launch(
        run_id="run-1",
        launcher="single",
        world_size=2,
        program=("train.py", "--lr", "0.1"),
        is_script=True,
        code_dir=Path("/run/code"),
        log_dir=Path("/run/logs"),
        env={},
        device="cpu",
        cores=None,
        auto_stop_s=None,
        grace_s=10.0,
    )


RANK = "/venv/bin/python -u /lib/bootstrap.py /run/logs/records/order.json"


def test_single_is_the_rank_itself(launch):
    assert " ".join(launcher_argv(launch)) == RANK


def test_torchrun_starts_one_node_on_loopback_with_a_port_of_its_own(launch):
    argv = launcher_argv(replace(launch, launcher="torchrun"))

    assert " ".join(argv) == (
        "/venv/bin/python -P -m torch.distributed.run --nnodes 1 --nproc-per-node 2 "
        "--rdzv-backend c10d --rdzv-endpoint localhost:0 --rdzv-id run-1 --local-addr 127.0.0.1 "
        "--max-restarts 0 --monitor-interval 0.1 --log-dir /run/logs/records/torchrun "
        f"--no-python {RANK}"
    )


def test_mpirun_of_mpich_starts_on_this_machine_only(launch):
    argv = launcher_argv(replace(launch, launcher="mpi"))

    assert " ".join(argv) == f"mpirun -launcher fork -n 2 {RANK}"


def test_mpirun_of_open_mpi_leaves_all_cores_to_every_rank(launch):
    mpirun = Mpirun("/usr/bin/mpirun", "openmpi")

    argv = launcher_argv(replace(launch, launcher="mpi"), mpirun)

    assert " ".join(argv) == f"/usr/bin/mpirun --oversubscribe --bind-to none -n 2 {RANK}"


def test_msrun_starts_all_ranks_on_loopback_and_waits_for_them(launch):
    argv = launcher_argv(replace(launch, launcher="msrun"), port=23456)

    assert " ".join(argv) == (
        "/venv/bin/python -P -m mindspore.parallel.cluster.run --worker_num 2 "
        "--local_worker_num 2 --master_addr 127.0.0.1 --master_port 23456 "
        "--log_dir /run/logs/records/msrun --join True --tail_worker_log 2 "
        "python3 -u /lib/bootstrap.py /run/logs/records/order.json"
    )


def test_words_of_the_program_never_meet_the_parser_of_a_launcher(launch):
    hostile = replace(launch, launcher="mpi", program=("train.py", ":", "-n", "9"))

    assert ":" not in launcher_argv(hostile)
