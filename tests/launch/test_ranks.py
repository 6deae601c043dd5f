"""What a rank finds when it starts, under each launcher: real launchers, real ranks."""

import json
import os
import sys
from pathlib import Path

import pytest

from trainjob.launch.training import run_training

HOW = [
    pytest.param("single", 1, id="single"),
    pytest.param("torchrun", 2, id="torchrun"),
    pytest.param("mpi", 2, id="mpi", marks=pytest.mark.mpi),
]
SHOW = """
    import json, os, sys
    print(json.dumps({"env": dict(os.environ), "argv": sys.argv, "path": sys.path[0],
                      "cwd": os.getcwd(), "stdin": sys.stdin.read()}))
"""
HOSTILE = (
    "plain",
    "a b",
    "",
    "quo'te\"s",
    "new\nline",
    ":",
    "-n",
    "--",
    "$HOME;|&",
    "%d",
    "\\",
    "é漢",
    "-1",
)


@pytest.mark.parametrize(("launcher", "world_size"), HOW)
def test_every_launcher_gives_the_same_variables_arguments_and_environment_and_no_secret(
    make_launch, watch, launcher, world_size, monkeypatch
):
    for secret in ("AWS_SECRET_ACCESS_KEY", "PREFECT_API_KEY", "ANYTHING"):
        monkeypatch.setenv(secret, "top-secret")
    own = {"NOTE": 'a\nb "c" é', "EMPTY": ""}
    how = {"launcher": launcher, "world_size": world_size, "cores": 4}

    ran = watch(make_launch(SHOW, *HOSTILE, env=own, **how))

    assert ran.result.reason == "finished"
    for rank in range(world_size):
        env = ran.json(rank)["env"]
        assert env["RANK"] == env["LOCAL_RANK"] == str(rank)
        assert env["WORLD_SIZE"] == env["LOCAL_WORLD_SIZE"] == str(world_size)
        assert env["GROUP_RANK"] == "0"
        assert env["MASTER_ADDR"] == "127.0.0.1"
        assert 1024 < int(env["MASTER_PORT"]) < 65536
        assert env["OMP_NUM_THREADS"] == str(4 // world_size)
        assert ran.json(rank)["argv"] == ["train.py", *HOSTILE]
        assert own.items() <= env.items()
        assert "top-secret" not in str(env)
        assert env["CUDA_VISIBLE_DEVICES"] == ""


def test_a_script_runs_in_the_code_folder_with_its_own_on_the_path(make_launch, watch):
    launch = make_launch(command=("sub/main.py", "x"), is_script=True)
    folder = launch.code_dir / "sub"
    folder.mkdir()
    (folder / "main.py").write_text("import neighbour\nneighbour.show()\n")
    (folder / "neighbour.py").write_text(
        "import json, os, sys\n"
        "def show():\n"
        "    print(json.dumps([os.getcwd(), sys.path[0], sys.argv, sys.stdin.read()]))\n"
    )

    ran = watch(launch)

    assert ran.json() == [str(launch.code_dir), str(folder), ["sub/main.py", "x"], ""]


def test_files_of_the_user_may_have_any_name(make_launch, watch):
    launch = make_launch("print('trained')", launcher="torchrun")
    for name in ("logging", "json", "signal", "typing", "launch", "records", "user_script"):
        (launch.code_dir / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")

    assert watch(launch).lines() == ["trained"]


@pytest.mark.parametrize(
    ("launcher", "world_size"), [HOW[0], pytest.param("mpi", 2, marks=pytest.mark.mpi, id="mpi")]
)
def test_a_command_in_any_language_runs_on_every_rank(make_launch, watch, launcher, world_size):
    launch = make_launch(
        command=("sh", "start.sh", *HOSTILE), launcher=launcher, world_size=world_size
    )
    (launch.code_dir / "start.sh").write_text(
        'python3 -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@"\n'
        'echo "rank $RANK of $WORLD_SIZE in $PWD"\n'
    )

    ran = watch(launch)

    for rank in range(world_size):
        arguments, said = ran.lines(rank)
        assert json.loads(arguments) == list(HOSTILE)
        assert said == f"rank {rank} of {world_size} in {launch.code_dir}"


@pytest.mark.mpi
def test_mpi_ranks_talk_to_each_other(make_launch, watch):
    script = """
        import os
        from mpi4py import MPI
        comm = MPI.COMM_WORLD
        assert comm.rank == int(os.environ["RANK"])
        print(comm.size, comm.allreduce(comm.rank + 1))
    """

    ran = watch(make_launch(script, launcher="mpi", world_size=2))

    assert ran.lines(0) == ran.lines(1) == ["2 3"]


@pytest.mark.mpi
def test_a_command_keeps_the_connection_to_mpirun(make_launch, watch):
    launch = make_launch(command=("sh", "start.sh"), launcher="mpi", world_size=2)
    (launch.code_dir / "start.sh").write_text("exec python3 train.py\n")
    (launch.code_dir / "train.py").write_text(
        "from mpi4py import MPI\nprint(MPI.COMM_WORLD.allreduce(1))\n"
    )
    launch.env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    ran = watch(launch)

    assert ran.lines(0) == ran.lines(1) == ["2"]


def test_gloo_ranks_talk_to_each_other(make_launch, watch):
    script = """
        import torch, torch.distributed as dist
        dist.init_process_group("gloo")
        tensor = torch.tensor([dist.get_rank() + 1.0])
        dist.all_reduce(tensor)
        print(dist.get_world_size(), tensor.item(), torch.get_num_threads())
    """

    ran = watch(make_launch(script, launcher="torchrun", world_size=2, cores=4))

    assert ran.lines(0) == ran.lines(1) == ["2 3.0 2"]


@pytest.mark.mpi
def test_gloo_ranks_meet_under_mpirun_too(make_launch, watch):
    script = """
        import torch, torch.distributed as dist
        dist.init_process_group("gloo")
        tensor = torch.ones(1)
        dist.all_reduce(tensor)
        print(tensor.item())
    """

    ran = watch(make_launch(script, launcher="mpi", world_size=2))

    assert ran.lines(0) == ran.lines(1) == ["2.0"]


def test_progress_of_rank_0_is_reported_while_it_runs(make_launch, watch):
    script = """
        from trainjob.progress import report
        report(1, total=2, epoch=1, loss=0.5)
        report(2, total=2, epoch=1, loss=0.25)
    """

    ran = watch(make_launch(script))

    last = ran.steps[-1]
    assert (last.rank, last.step, last.total, last.epoch) == (0, 2, 2, 1)
    assert last.metrics == {"loss": 0.25}


def test_a_second_launch_into_the_same_folder_is_refused(make_launch, watch):
    launch = make_launch("print('x')")
    watch(launch)

    with pytest.raises(FileExistsError):
        run_training(launch)
