"""Trainings that stand still are stopped and the rank behind is named; those that live go on."""

import time
from typing import Any

import pytest

from tests.launch.conftest import marked_processes, read_record
from trainjob.launch.failure import TrainingStalled
from trainjob.launch.launch import Launch
from trainjob.launch.training import run_training

BUSY = "import time\nend = time.monotonic() + 2.2\nwhile time.monotonic() < end: pass\n"


def stall_of(launch: Launch) -> Any:
    """Run a launch until it is stopped as stalled, and return what was recorded of it."""
    with pytest.raises(TrainingStalled):
        run_training(launch)
    assert not marked_processes(launch)
    assert read_record(launch, "outcome")["reason"] == "stalled"
    return read_record(launch, "stall")


def test_a_rank_that_sleeps_for_ever_is_stopped_and_its_stack_is_kept(make_launch):
    script = """
        import time
        def forgotten():
            print("ready", flush=True)
            time.sleep(60)
        forgotten()
    """
    launch = make_launch(script, stall_s=1.0)
    started = time.monotonic()

    stall = stall_of(launch)

    assert 1.0 <= time.monotonic() - started < 45
    assert 1.0 <= stall["quiet_s"] < 30
    assert stall["behind"] == 0
    rank = stall["ranks"][0]
    assert (rank["state"], rank["waits_in"], rank["last_step"]) == ("is idle", None, None)
    assert "in forgotten" in rank["stack"]
    assert launch.rank_log(0).read_text() == "ready\n"


def test_the_rank_that_does_not_join_a_collective_is_named(make_launch):
    script = """
        import time, torch, torch.distributed as dist
        from trainjob.progress import report
        dist.init_process_group("gloo")
        rank, tensor = dist.get_rank(), torch.ones(1)
        for step in range(1, 4):
            report(step)
            dist.all_reduce(tensor)
        if rank == 1:
            time.sleep(60)
        dist.all_reduce(tensor)
    """

    stall = stall_of(make_launch(script, world_size=2, stall_s=5.0))

    assert stall["behind"] == 1
    assert [rank["waits_in"] for rank in stall["ranks"]] == ["all_reduce", None]
    assert [rank["state"] for rank in stall["ranks"]] == ["waits in a collective", "is idle"]
    assert [rank["last_step"] for rank in stall["ranks"]] == [3, 3]


def test_the_rank_that_hangs_in_its_loader_is_named(make_launch):
    script = """
        import time, torch, torch.distributed as dist
        from torch.utils.data import DataLoader, Dataset
        from trainjob.progress import report
        class Hanging(Dataset):
            def __len__(self):
                return 2
            def __getitem__(self, i):
                time.sleep(60)
        dist.init_process_group("gloo")
        if dist.get_rank() == 1:
            report(4)
            next(iter(DataLoader(Hanging(), num_workers=1)))
        report(5)
        dist.barrier()
    """

    stall = stall_of(make_launch(script, world_size=2, stall_s=5.0))

    assert stall["behind"] == 1
    assert [rank["waits_in"] for rank in stall["ranks"]] == ["barrier", None]
    assert stall["ranks"][1]["state"] == "waits for its data loader"
    assert [rank["last_step"] for rank in stall["ranks"]] == [5, 4]


SPINNING = """
    import time
    import numpy
    from mpi4py import MPI
    if MPI.COMM_WORLD.rank == 1:
        {meanwhile}
    MPI.COMM_WORLD.Allreduce(
        numpy.ones(1), numpy.ones(1))
"""


@pytest.mark.mpi
def test_a_rank_that_spins_in_a_collective_does_not_count_as_alive(make_launch):
    script = SPINNING.format(meanwhile="time.sleep(60)")

    stall = stall_of(make_launch(script, launcher="mpi", world_size=2, stall_s=1.5))

    spinning, sleeping = stall["ranks"]
    assert stall["behind"] == 1
    assert (spinning["waits_in"], spinning["state"]) == ("Allreduce", "waits in a collective")
    assert spinning["cpu_s"] > sleeping["cpu_s"]
    assert (sleeping["waits_in"], sleeping["state"]) == (None, "is idle")


@pytest.mark.mpi
def test_ranks_that_wait_for_one_that_computes_are_alive(make_launch):
    computing = "end = time.monotonic() + 15\n        while time.monotonic() < end: pass"
    script = SPINNING.format(meanwhile=computing)

    result = run_training(make_launch(script, launcher="mpi", world_size=2, stall_s=6.0))

    assert result.reason == "finished"
    assert result.seconds > 15


@pytest.mark.mpi
def test_ranks_that_do_little_but_communicate_are_alive(make_launch):
    script = """
        import time
        from mpi4py import MPI
        end = MPI.COMM_WORLD.allreduce(time.monotonic() + 4)
        now = 0
        while now < end:
            sum(range(20_000))
            now = MPI.COMM_WORLD.allreduce(time.monotonic())
    """

    result = run_training(make_launch(script, launcher="mpi", world_size=2, stall_s=1.5))

    assert result.reason == "finished"


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(BUSY, id="computing"),
        pytest.param(
            f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BUSY!r}], check=True)",
            id="computing-in-a-process-below",
        ),
        pytest.param(
            "import time\nfor i in range(8):\n    print(i, flush=True)\n    time.sleep(0.4)\n",
            id="printing",
        ),
        pytest.param(
            "import time\nfrom trainjob.progress import report\n"
            "for i in range(8):\n    report(i)\n    time.sleep(0.4)\n",
            id="reporting",
        ),
    ],
)
def test_a_rank_that_shows_any_sign_of_life_goes_on(make_launch, script):
    result = run_training(make_launch(script, stall_s=1.5))

    assert result.reason == "finished"
    assert result.seconds > 2


def test_a_rank_that_mostly_waits_and_computes_a_little_in_between_goes_on(make_launch):
    script = """
        import time
        def waits_for_the_device():
            time.sleep(0.25)
        def waits_for_the_disk():
            time.sleep(0.25)
        end = time.monotonic() + 6
        while time.monotonic() < end:
            waits_for_the_device()
            sum(range(300_000))
            waits_for_the_disk()
    """

    result = run_training(make_launch(script, stall_s=4.0))  # the last half of it is looked at

    assert result.reason == "finished"


def test_a_rank_that_only_looks_whether_something_has_come_is_stopped(make_launch):
    script = """
        import pathlib, time
        while not pathlib.Path("never").exists():
            time.sleep(0.2)
            time.sleep(0.2)
    """

    assert stall_of(make_launch(script, stall_s=6.0))["ranks"][0]["state"] == "is idle"


def test_a_rank_that_writes_files_goes_on(make_launch, tmp_path):
    folder = tmp_path / "saved" / "deep"
    folder.mkdir(parents=True)
    script = """
        import pathlib, sys, time
        file = pathlib.Path(sys.argv[1], "part")
        for i in range(7):
            with file.open("ab") as out:
                out.write(b"x")
            time.sleep(0.5)
    """
    launch = make_launch(script, str(folder), stall_s=1.5, watched_dirs=(tmp_path / "saved",))

    assert run_training(launch).reason == "finished"


def test_a_command_that_computes_goes_on_and_one_that_is_idle_is_stopped(make_launch):
    busy = make_launch(command=("python3", "-c", BUSY), stall_s=1.0)
    idle = make_launch(command=("sh", "-c", "sleep 60; true"), stall_s=1.0)

    assert run_training(busy).reason == "finished"
    assert stall_of(idle)["ranks"][0]["state"] == "is idle"


def test_a_stalled_rank_that_does_not_want_to_leave_is_killed(make_launch):
    script = """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda *_: print("asked", flush=True))
        time.sleep(60)
    """
    launch = make_launch(script, stall_s=0.5, grace_s=0.5)

    assert stall_of(launch)["behind"] == 0
    assert launch.rank_log(0).read_text() == ""


def test_a_rank_that_was_stopped_by_a_signal_is_said_to_be(make_launch):
    script = "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n"

    assert stall_of(make_launch(script, stall_s=0.5, grace_s=0.5))["ranks"][0]["state"] == (
        "was stopped by a signal"
    )
