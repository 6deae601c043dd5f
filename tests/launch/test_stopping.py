"""Everything that ends a run from outside: callers, time limits, and deaths above the ranks."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.launch.conftest import marked_processes, read_record
from tests.waiting import PATIENCE_S, wait_until
from trainjob.errors import TrainingFailed
from trainjob.launch.launch import Launch
from trainjob.launch.training import Control, TrainingResult, run_training

WAIT = "import time\nprint('ready', flush=True)\ntime.sleep(600)\n"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAIT
HOW = [
    pytest.param("single", 1, id="single"),
    pytest.param("torchrun", 2, id="torchrun"),
    pytest.param("mpi", 2, id="mpi", marks=pytest.mark.mpi),
]
CALLER = (
    "import pickle, sys\n"
    "from trainjob.launch.training import run_training\n"
    "run_training(pickle.loads(bytes.fromhex(sys.argv[1])))\n"
)


class Termination(BaseException):
    """Stands for what Prefect raises in the main thread on SIGTERM."""


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def pid_of(launch: Launch, what: str) -> int:
    return next(pid for pid, command in marked_processes(launch).items() if what in command)


@pytest.mark.parametrize(("launcher", "world_size"), HOW)
def test_an_interrupted_caller_leaves_nothing(make_launch, run_until, launcher, world_size):
    launch = make_launch(WAIT, launcher=launcher, world_size=world_size)

    with pytest.raises(KeyboardInterrupt):
        run_until(launch, "ready", interrupt)

    assert not marked_processes(launch)


def test_any_exception_in_the_waiting_thread_ends_the_run(make_launch, run_until):
    def terminate(*_):
        raise Termination

    launch = make_launch(WAIT)
    before = signal.signal(signal.SIGUSR1, terminate)
    try:
        with pytest.raises(Termination):
            run_until(launch, "ready", lambda: os.kill(os.getpid(), signal.SIGUSR1))
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert not marked_processes(launch)
    assert read_record(launch, "exit-0")["code"] == -signal.SIGTERM


def test_a_rank_that_ignores_sigterm_is_killed_after_the_grace(make_launch, run_until):
    launch = make_launch(STUBBORN, grace_s=0.5)

    with pytest.raises(KeyboardInterrupt):
        run_until(launch, "ready", interrupt)

    assert not marked_processes(launch)


def test_a_rank_on_a_full_disk_is_asked_to_leave_all_the_same(make_launch, run_until):
    """A folder that is in the way of the stub's file stands for the disk."""
    script = """
        import os, pathlib, signal, sys, time
        def leave(*_):
            print("asked", flush=True)
            sys.exit()
        signal.signal(signal.SIGTERM, leave)
        records = pathlib.Path(os.environ["TRAINJOB_PROGRESS_FILE"]).parent
        (records / f"told-to-leave-0.{os.getppid()}.tmp").mkdir()
        print("ready", flush=True)
        time.sleep(60)
    """
    launch = make_launch(script)

    with pytest.raises(KeyboardInterrupt):
        run_until(launch, "ready", interrupt)

    assert launch.rank_log(0).read_text().splitlines() == ["ready", "asked"]
    assert read_record(launch, "exit-0")["code"] == 0
    assert read_record(launch, "told-to-leave-0")


def test_a_second_interrupt_does_not_wait_for_the_grace(make_launch, run_until):
    launch = make_launch(STUBBORN, grace_s=500.0)
    noted: list[float] = []

    def interrupt_again() -> None:  # now, or both would be one
        noted.append(time.monotonic())
        threading.Timer(0.1, interrupt).start()

    with pytest.raises(KeyboardInterrupt):
        run_until(launch, "ready", interrupt, control=Control(interrupt_again))

    assert len(noted) == 1
    assert time.monotonic() - noted[0] < PATIENCE_S
    assert not marked_processes(launch)


SAVING = """
    import os, signal, sys, time
    {before}
    def save(*_):
        if os.environ["RANK"] == "0":
            os._exit(5)
        print("saving", flush=True)
        time.sleep(0.7)
        print("saved", flush=True)
        sys.exit(0)

    signal.signal(signal.SIGTERM, save)
    {barrier}
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("launcher", "before", "barrier"),
    [
        pytest.param(
            "torchrun",
            "import torch.distributed as dist; dist.init_process_group('gloo')",
            "dist.barrier()",
            id="torchrun",
        ),
        pytest.param(
            "mpi",
            "from mpi4py import MPI",
            "MPI.COMM_WORLD.Barrier()",
            marks=pytest.mark.mpi,
            id="mpi",
        ),
    ],
)
def test_a_rank_that_leaves_first_does_not_end_the_saving_of_another(
    make_launch, run_until, launcher, before, barrier
):
    script = SAVING.format(before=before, barrier=barrier)
    launch = make_launch(script, launcher=launcher, world_size=2)

    with pytest.raises(KeyboardInterrupt):
        run_until(launch, "ready", interrupt)

    assert launch.rank_log(1).read_text().splitlines()[-2:] == ["saving", "saved"]
    assert read_record(launch, "exit-0")["code"] == 5
    assert read_record(launch, "exit-1")["code"] == 0


def test_a_program_below_a_command_has_time_to_save(make_launch, run_until):
    launch = make_launch(command=("sh", "start.sh"))
    (launch.code_dir / "start.sh").write_text("python3 train.py\necho after\n")
    (launch.code_dir / "train.py").write_text(
        "import signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(0.5)\n"
        "    print('saved', flush=True)\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n" + WAIT
    )

    with pytest.raises(KeyboardInterrupt):
        run_until(launch, "ready", interrupt)

    assert launch.rank_log(0).read_text().splitlines() == ["ready", "saved"]


def test_auto_stop_ends_the_run_and_is_no_failure(make_launch):
    """Under each launcher, runs of `test_stopping_runs` have it."""
    launch = make_launch(WAIT, auto_stop_s=0.5)

    result = run_training(launch)

    assert result.reason == "auto_stop"
    assert 0.5 <= result.seconds < PATIENCE_S


def test_auto_stop_of_ranks_that_do_not_want_to_leave(make_launch):
    launch = make_launch(STUBBORN, auto_stop_s=0.4, grace_s=0.4)

    assert run_training(launch).reason == "auto_stop"


def test_a_run_that_ends_before_its_time_limit_is_finished(make_launch):
    assert run_training(make_launch("", auto_stop_s=60.0)).reason == "finished"


def test_a_rank_that_fails_is_a_failure_even_if_the_others_use_up_the_time(make_launch):
    # The others are killed 10 s after it has failed: by then the time is over, not before.
    failing = """\
import os, pathlib, time
if os.environ["RANK"] == "1":
    order = pathlib.Path(os.environ["TRAINJOB_PROGRESS_FILE"]).with_name("order.json")
    time.sleep(max(0.0, order.stat().st_mtime + 7.0 - time.time()))
    raise ValueError("x")
"""
    launch = make_launch(
        failing + STUBBORN, launcher="mpi", world_size=2, auto_stop_s=15.0, grace_s=10.0
    )

    with pytest.raises(TrainingFailed, match="rank 1 of 2 failed first: ValueError: x"):
        run_training(launch)


@pytest.mark.parametrize(
    ("launcher", "world_size", "what"),
    [
        pytest.param("single", 1, "caller", id="single-caller"),
        pytest.param("torchrun", 2, "caller", id="torchrun-caller"),
        pytest.param("mpi", 2, "caller", id="mpi-caller", marks=pytest.mark.mpi),
        pytest.param("single", 1, "supervisor", id="single-supervisor"),
        pytest.param("mpi", 2, "supervisor", id="mpi-supervisor", marks=pytest.mark.mpi),
    ],
)
def test_nothing_outlives_a_killed_caller(make_launch, launcher, world_size, what):
    """Nor one whose supervisor is killed at the same time."""
    launch = make_launch(WAIT, launcher=launcher, world_size=world_size)
    with subprocess.Popen(
        [sys.executable, "-c", CALLER, pickle.dumps(launch).hex()], cwd=Path.cwd()
    ) as caller:
        wait_until(lambda: all_ready(launch))
        supervisor = pid_of(launch, "supervisor.py")

        caller.kill()
        if what == "supervisor":
            os.kill(supervisor, signal.SIGKILL)

    wait_until(lambda: not marked_processes(launch))


def all_ready(launch: Launch) -> bool:
    logs = [launch.rank_log(rank) for rank in range(launch.world_size)]
    return all(log.exists() and b"ready" in log.read_bytes() for log in logs)


@pytest.mark.parametrize(("launcher", "world_size"), HOW)
def test_a_killed_supervisor_is_told_and_leaves_nothing(
    make_launch, run_until, launcher, world_size
):
    launch = make_launch(WAIT, launcher=launcher, world_size=world_size)

    with pytest.raises(TrainingFailed, match="the supervisor of the run died"):
        run_until(launch, "ready", lambda: os.kill(pid_of(launch, "supervisor.py"), signal.SIGKILL))

    assert not marked_processes(launch)


def test_a_daemon_that_hides_does_not_outlive_a_killed_supervisor(make_launch, run_until):
    script = """
        import os, time
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(write, str(os.getpid()).encode())
                # Nothing of the run is in its environment.
                os.execve("/bin/sleep", ["sleep", "60"], {})
            os._exit(0)
        with open("daemon", "wb") as file:
            file.write(os.read(read, 20))
        print("ready", flush=True)
        time.sleep(60)
    """
    launch = make_launch(script)

    with pytest.raises(TrainingFailed, match="the supervisor of the run died"):
        run_until(launch, "ready", lambda: os.kill(pid_of(launch, "supervisor.py"), signal.SIGKILL))

    daemon = Path("/proc", (launch.code_dir / "daemon").read_text())
    wait_until(lambda: not daemon.exists())


@pytest.mark.parametrize(("launcher", "world_size"), HOW)
def test_a_killed_launcher_is_told_and_leaves_nothing(make_launch, run_until, launcher, world_size):
    launch = make_launch(WAIT, launcher=launcher, world_size=world_size)

    def kill_launcher() -> None:
        os.kill(launcher_pid(launch), signal.SIGKILL)

    with pytest.raises(TrainingFailed) as caught:
        run_until(launch, "ready", kill_launcher)

    assert str(caught.value).startswith(
        f"the launcher ({launcher}) was killed by SIGKILL (often out of memory) before the ranks "
        "had ended"
    )
    assert not marked_processes(launch)


def launcher_pid(launch: Launch) -> int:
    supervisor = pid_of(launch, "supervisor.py")
    return int(Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()[0])


def test_a_supervisor_that_is_asked_to_stop_stops_the_ranks(make_launch, run_until):
    launch = make_launch(WAIT)

    with pytest.raises(TrainingFailed, match="was asked by a signal to stop it"):
        run_until(launch, "ready", lambda: os.kill(pid_of(launch, "supervisor.py"), signal.SIGTERM))

    assert read_record(launch, "exit-0")["code"] == -signal.SIGTERM


def test_stacks_come_on_sigusr2_and_the_rank_goes_on(make_launch, run_until):
    script = """
        import signal, time
        signal.signal(signal.SIGUSR1, lambda *_: exit(0))
        def deep_in_the_loop():
            print("ready", flush=True)
            time.sleep(60)
        deep_in_the_loop()
    """
    launch = make_launch(script)

    def ask() -> None:
        stub = read_record(launch, "begin-0")["pid"]
        os.kill(stub, signal.SIGUSR2)
        wait_until(lambda: "deep_in_the_loop" in stacks_of(launch))
        os.kill(stub, signal.SIGUSR1)

    assert run_until(launch, "ready", ask).reason == "finished"
    assert launch.rank_log(0).read_text() == "ready\n"


def stacks_of(launch: Launch) -> str:
    return (launch.records_dir / "stacks-0.txt").read_text()


def test_a_signal_that_a_program_does_not_handle_does_not_end_it(make_launch, run_until):
    launch = make_launch(command=("sh", "-c", "echo ready; while [ ! -e go ]; do sleep 0.1; done"))

    def ask() -> None:
        stub = read_record(launch, "begin-0")["pid"]
        for signum in (signal.SIGUSR1, signal.SIGUSR2):
            os.kill(stub, signum)
        (launch.code_dir / "go").touch()

    assert run_until(launch, "ready", ask).reason == "finished"


def test_it_can_be_called_from_any_thread(make_launch):
    results: list[TrainingResult] = []
    launches = [make_launch("import os\nassert os.environ['MASTER_PORT']") for _ in range(3)]
    threads = [
        threading.Thread(target=lambda launch=launch: results.append(run_training(launch)))
        for launch in launches
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert [result.reason for result in results] == ["finished"] * 3


def test_the_supervisor_is_small(make_launch, run_until):
    launch = make_launch(WAIT)
    sizes_kib: list[int] = []

    def measure() -> None:
        status = Path(f"/proc/{pid_of(launch, 'supervisor.py')}/status").read_text()
        sizes_kib.extend(
            int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")
        )
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        run_until(launch, "ready", measure)

    assert sizes_kib[0] < 20 * 1024
