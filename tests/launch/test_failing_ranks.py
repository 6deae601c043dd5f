"""Ranks that fail in every way: the cause is named, and nothing is left."""

import time
from pathlib import Path

import pytest

from tests.launch.conftest import marked_processes, read_record
from tests.waiting import PATIENCE_S
from trainjob.errors import LaunchError, TrainingFailed
from trainjob.launch import mpi
from trainjob.launch.failure import RankFailed
from trainjob.launch.training import run_training

RANK_1 = """
    import ctypes, os, signal, sys, time
    if os.environ["RANK"] != "1":
        time.sleep(600)
    print("before")
    {failing}
"""


def failure(launch) -> RankFailed:
    with pytest.raises(RankFailed) as caught:
        run_training(launch)
    assert not marked_processes(launch)
    return caught.value


OS_EXIT = ("os._exit(3)", "failed first with exit code 3", 3, None)
SIGSEGV = (
    "ctypes.string_at(0)",
    "was killed first by SIGSEGV (invalid memory access in native code)",
    None,
    "SIGSEGV",
)


@pytest.mark.parametrize(
    ("launcher", "failing", "first_line", "code", "signal"),
    [
        pytest.param("torchrun", *OS_EXIT, id="os-exit-torchrun"),
        pytest.param("mpi", *OS_EXIT, id="os-exit-mpi", marks=pytest.mark.mpi),
        pytest.param("mpi", *SIGSEGV, id="sigsegv-mpi", marks=pytest.mark.mpi),
    ],
)
def test_the_rank_that_fails_is_named_and_the_others_end(
    make_launch, launcher, failing, first_line, code, signal
):
    """Other failures, and each under both launchers, are had by the runs of `test_fault_matrix`."""
    script = RANK_1.format(failing=failing)
    started = time.monotonic()

    failed = failure(make_launch(script, launcher=launcher, world_size=2))

    assert str(failed).partition("\n")[0] == f"rank 1 of 2 {first_line}"
    assert (failed.failure.rank, failed.failure.exit_code) == (1, code)
    assert failed.failure.signal == signal
    assert failed.failure.last_lines[0] == "before"
    assert time.monotonic() - started < PATIENCE_S


def test_what_no_database_can_take_of_what_a_rank_said_is_written_as_escapes(make_launch):
    """PostgreSQL refuses a text with a zero byte, and so the state of the run."""
    script = r"""
        print("head\0er\x01\tof \x1b[1;31mcolour\x1b[0m")
        raise ValueError("bad \0 head")
    """

    failed = failure(make_launch(script)).failure

    assert failed.headline.startswith(r"rank 0 of 1 failed: ValueError: bad \x00 head")
    assert failed.last_lines == ("head\\x00er\\x01\tof colour",)
    assert not [sign for sign in failed.message if sign < " " and sign not in "\t\n"]


def test_a_crash_in_native_code_leaves_its_stack(make_launch):
    failed = failure(make_launch("import ctypes\ndef deep():\n    ctypes.string_at(0)\ndeep()\n"))

    assert any("Segmentation fault" in line for line in failed.failure.last_lines)
    assert any("in deep" in line for line in failed.failure.last_lines)


def test_a_rank_that_raises_while_the_other_waits_in_a_collective(make_launch):
    script = """
        import os, signal, torch, torch.distributed as dist
        signal.signal(signal.SIGTERM, lambda *_: None)
        dist.init_process_group("gloo")
        dist.barrier()
        if dist.get_rank() == 1:
            raise ValueError("no such class")
        dist.all_reduce(torch.ones(1))
    """

    failed = failure(make_launch(script, world_size=2, grace_s=1.0))

    assert str(failed).startswith(
        "rank 1 of 2 failed first: ValueError: no such class (exit code 1)\nTraceback"
    )


@pytest.mark.mpi
def test_an_mpi_rank_that_raises_while_the_other_waits_in_a_collective(make_launch):
    script = """
        from mpi4py import MPI
        if MPI.COMM_WORLD.rank == 1:
            raise ValueError("no such class")
        MPI.COMM_WORLD.Barrier()
    """

    failed = failure(make_launch(script, launcher="mpi", world_size=2))

    assert str(failed).startswith("rank 1 of 2 failed first: ValueError: no such class")


SAVING = """
    import os, signal, sys, time
    {before}
    if os.environ["RANK"] == "1":
        while not os.path.exists("ready"):
            time.sleep(0.01)
        raise ValueError("x")

    def save(*_):
        print("saving", flush=True)
        time.sleep(0.7)
        print("saved", flush=True)
        sys.exit(0)

    signal.signal(signal.SIGTERM, save)
    open("ready", "w").close()
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("launcher", "before"),
    [
        pytest.param("torchrun", "", id="torchrun"),
        pytest.param("mpi", "from mpi4py import MPI", marks=pytest.mark.mpi, id="mpi"),
    ],
)
def test_the_other_ranks_have_time_to_save_and_are_asked_once(make_launch, launcher, before):
    launch = make_launch(SAVING.format(before=before), launcher=launcher, world_size=2)

    failed = failure(launch)

    assert failed.failure.rank == 1
    assert launch.rank_log(0).read_text().splitlines() == ["saving", "saved"]
    assert read_record(launch, "exit-0")["code"] == 0


def test_a_daemon_that_a_rank_leaves_is_ended(make_launch, watch):
    script = """
        import os, sys, time
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(write, str(os.getpid()).encode())
                # Nothing of the run is in its environment, and it does not want to leave.
                os.execve("/bin/sh", ["sh", "-c", "trap '' TERM; sleep 60; sleep 60"], {})
            os._exit(0)
        print(os.read(read, 20).decode())
    """

    ran = watch(make_launch(script))

    assert not Path(f"/proc/{ran.lines()[-1]}").exists()


def test_children_of_a_command_are_ended_with_it(make_launch, watch):
    launch = make_launch(command=("sh", "-c", "sleep 60 & echo $!"))

    ran = watch(launch)

    assert not Path(f"/proc/{ran.lines()[-1]}").exists()


def test_a_launcher_that_fails_is_shown_with_its_output(make_launch, watch, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('no torch today')\n")
    launch = make_launch("", world_size=2, env={"PYTHONPATH": str(tmp_path)})

    with pytest.raises(LaunchError) as caught:
        watch(launch)

    assert str(caught.value).splitlines()[:3] == [
        "the launcher (torchrun) failed with exit code 1 before any rank began",
        "last 1 line of the launcher:",
        "  no torch today",
    ]


@pytest.fixture
def fake_mpirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An mpirun that says it is mpich, and starts one process of no group."""
    program = tmp_path / "bin" / "mpirun"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && exec echo HYDRA\nshift 4\nexec "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(mpi, "_BESIDE_PYTHON", str(program.parent))
    return program


@pytest.mark.mpi
def test_a_launcher_that_makes_smaller_groups_is_refused(make_launch, fake_mpirun):
    launch = make_launch("print('must not run')", launcher="mpi", world_size=2)

    with pytest.raises(LaunchError) as caught:
        run_training(launch)

    assert str(caught.value) == (
        "asked for 2 ranks, found a launcher that makes groups of 1; its mpirun must be of the "
        "same MPI as mpi4py"
    )
    assert not launch.rank_log(0).exists()


@pytest.mark.mpi
def test_ranks_that_mpi4py_puts_in_groups_of_one_fail(make_launch, fake_mpirun):
    lines = fake_mpirun.read_text().replace('exec "$@"', 'OMPI_COMM_WORLD_RANK=0 exec "$@"')
    fake_mpirun.write_text(lines.replace("shift 4", "shift 4; export OMPI_COMM_WORLD_SIZE=2"))
    launch = make_launch("from mpi4py import MPI", launcher="mpi", world_size=2)

    with pytest.raises(RankFailed, match="asked for 2 ranks, found 1 in COMM_WORLD of mpi4py"):
        run_training(launch)


def test_the_failure_is_a_training_that_failed(make_launch):
    assert isinstance(failure(make_launch("1 / 0")), TrainingFailed)


def test_nothing_of_a_failed_run_is_left_in_the_temporary_folder(make_launch, tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()

    failure(make_launch("1 / 0", world_size=2, env={"TMPDIR": str(temporary)}))

    assert list(temporary.iterdir()) == []
