"""The first step of the stop ladder: ranks are asked to save and to leave with 0."""

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
from trainjob.launch.dead_flow import end_of_dead_flow
from trainjob.launch.failure import RankFailed
from trainjob.launch.launch import Launch
from trainjob.launch.training import Control, TrainingResult, run_training

LAUNCHERS = [
    pytest.param("single", 1, id="single"),
    pytest.param("torchrun", 2, id="torchrun"),
    pytest.param("mpi", 2, id="mpi", marks=pytest.mark.mpi),
]
LISTENING = """
    import signal, time
    from trainjob.progress import should_stop
    signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
    assert not should_stop()
    print("ready", flush=True)
    while not should_stop():
        time.sleep(0.01)
    time.sleep({saving_s})
    print("saved", flush=True)
"""
HANDLING = """
    import signal, sys, time
    {before}
    def save(*_):
        time.sleep(0.5)
        print("saved", flush=True)
        sys.exit(0)
    signal.signal(signal.SIGUSR1, save)
    {barrier}
    print("ready", flush=True)
    time.sleep(60)
"""
DEAF = "import time\nprint('ready', flush=True)\ntime.sleep(600)\n"
CALLER = (
    "import pickle, sys\n"
    "from trainjob.launch.training import run_training\n"
    "run_training(pickle.loads(bytes.fromhex(sys.argv[1])))\n"
)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def lines(launch: Launch, rank: int = 0) -> list[str]:
    return launch.rank_log(rank).read_text().splitlines()


def run_until_all_are_ready(launch: Launch) -> TrainingResult:
    """Run a launch and stop it for its target when all ranks have written that they are ready."""
    control = Control()
    logs = [launch.rank_log(rank) for rank in range(launch.world_size)]

    def stop() -> None:
        wait_until(lambda: all(log.exists() and b"ready" in log.read_bytes() for log in logs))
        control.stop_at_target()

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        return run_training(launch, control)
    finally:
        thread.join()


@pytest.mark.parametrize(("launcher", "world_size"), LAUNCHERS)
def test_ranks_that_listen_save_and_leave_with_0(make_launch, launcher, world_size):
    script = LISTENING.format(saving_s=0.3)
    launch = make_launch(script, launcher=launcher, world_size=world_size, grace_s=30.0)

    assert run_until_all_are_ready(launch).reason == "target"

    for rank in range(world_size):
        assert lines(launch, rank) == ["ready", "saved"]
        assert read_record(launch, f"exit-{rank}")["code"] == 0
    assert read_record(launch, "outcome") == {"reason": "target", "code": 0}


@pytest.mark.parametrize(
    ("launcher", "before", "barrier"),
    [
        pytest.param("single", "", "", id="single"),
        pytest.param(
            "mpi",
            "from mpi4py import MPI",
            "MPI.COMM_WORLD.Barrier()",
            id="mpi",
            marks=pytest.mark.mpi,
        ),
    ],
)
def test_a_handler_of_sigusr1_is_given_time_to_save(
    make_launch, run_until, launcher, before, barrier
):
    size = 2 if launcher == "mpi" else 1
    script = HANDLING.format(before=before, barrier=barrier)
    launch = make_launch(script, launcher=launcher, world_size=size, grace_s=30.0)

    with pytest.raises(KeyboardInterrupt):
        run_until(launch, "ready", interrupt)

    assert [lines(launch, rank) for rank in range(size)] == [["ready", "saved"]] * size
    assert read_record(launch, "outcome") == {"reason": "stopped", "code": 0}


def test_a_program_below_a_command_can_listen(make_launch, run_until):
    launch = make_launch(command=("sh", "-c", "python3 train.py && echo after"), grace_s=30.0)
    own = str(Path(__file__).parents[2])
    (launch.code_dir / "train.py").write_text(
        f"import sys, time\nsys.path.append({own!r})\n"
        "from trainjob.progress import should_stop\nshould_stop()\nprint('ready', flush=True)\n"
        "while not should_stop(): time.sleep(0.01)\nprint('saved', flush=True)\n"
    )

    with pytest.raises(KeyboardInterrupt):
        run_until(launch, "ready", interrupt)

    assert lines(launch) == ["ready", "saved", "after"]


def test_a_rank_that_does_not_act_on_the_request_gets_sigterm_then_sigkill(make_launch, run_until):
    launch = make_launch(LISTENING.format(saving_s=600), grace_s=6.0)
    begun = []

    def stop() -> None:
        begun.append(time.monotonic())
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        run_until(launch, "ready", stop)

    assert 5.6 < time.monotonic() - begun[0] < PATIENCE_S
    assert lines(launch) == ["ready", "told"]
    asked, told = (launch.records_dir / name for name in ("stop-request", "told-to-leave-0.json"))
    assert 3.6 < told.stat().st_mtime - asked.stat().st_mtime < PATIENCE_S


def test_sigkill_never_comes_with_sigterm_however_late_that_is(make_launch, run_until):
    """As when the machine, or the container, stood still for a while."""
    script = """
        import signal, sys, time
        from trainjob.progress import should_stop
        def save(*_):
            time.sleep(0.5)
            print("saved", flush=True)
            sys.exit(0)
        signal.signal(signal.SIGTERM, save)
        should_stop()
        print("ready", flush=True)
        time.sleep(60)
    """
    launch = make_launch(script, grace_s=6.0)
    control = Control()

    def stop_and_pause() -> None:
        supervisor = read_record(launch, "supervisor")["pid"]
        control.stop_at_target()
        wait_until(launch.stop_file.exists)
        os.kill(supervisor, signal.SIGSTOP)
        goes_on_at = time.monotonic() + launch.grace_s
        wait_until(lambda: time.monotonic() > goes_on_at)
        os.kill(supervisor, signal.SIGCONT)

    result = run_until(launch, "ready", stop_and_pause, control)

    assert result.reason == "target"
    assert lines(launch) == ["ready", "saved"]


@pytest.mark.parametrize(
    ("launcher", "script"),
    [
        pytest.param("torchrun", DEAF, id="torchrun"),
        pytest.param("mpi", f"from mpi4py import MPI\n{DEAF}", id="mpi", marks=pytest.mark.mpi),
    ],
)
def test_ranks_that_do_not_listen_are_not_asked(make_launch, run_until, launcher, script):
    launch = make_launch(script, launcher=launcher, world_size=2, grace_s=500.0)
    begun = []

    def stop() -> None:
        begun.append(time.monotonic())
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        run_until(launch, "ready", stop)

    assert time.monotonic() - begun[0] < PATIENCE_S


def test_a_rank_that_cannot_save_is_a_failure_of_a_run_that_was_stopped(make_launch):
    script = LISTENING.format(saving_s=0) + "    raise OSError('no space left')\n"

    with pytest.raises(RankFailed, match="OSError: no space left"):
        run_until_all_are_ready(make_launch(script))


@pytest.mark.mpi
def test_what_ranks_get_from_each_others_leaving_is_no_failure(make_launch):
    script = """
        import os, time
        from trainjob.progress import should_stop
        should_stop()
        print("ready", flush=True)
        while not should_stop():
            time.sleep(0.01)
        if os.environ["RANK"] == "1":
            raise RuntimeError("Connection closed by peer [127.0.0.1]:30000")
    """
    launch = make_launch(script, launcher="mpi", world_size=2)

    assert run_until_all_are_ready(launch).reason == "target"


@pytest.mark.mpi
def test_a_rank_that_fails_while_others_save_ends_their_time(make_launch):
    script = """
        import os, time
        from trainjob.progress import should_stop
        should_stop()
        print("ready", flush=True)
        while not should_stop():
            time.sleep(0.01)
        if os.environ["RANK"] == "1":
            raise OSError("no space left")
        time.sleep(60)
    """
    launch = make_launch(script, launcher="mpi", world_size=2, grace_s=60.0)

    with pytest.raises(RankFailed, match="rank 1 of 2 failed first: OSError: no space left"):
        run_until_all_are_ready(launch)


@pytest.mark.parametrize(
    "script",
    [pytest.param(LISTENING.format(saving_s=0), id="listening"), pytest.param(DEAF, id="deaf")],
)
def test_a_training_is_stopped_at_its_target_from_any_thread(make_launch, run_until, script):
    control = Control()
    launch = make_launch(script)

    result = run_until(
        launch,
        "ready",
        lambda: threading.Thread(target=control.stop_at_target).start(),
        control=control,
    )

    assert result.reason == "target"
    assert read_record(launch, "outcome")["reason"] == "target"


def test_a_target_that_is_reached_before_the_start_stops_the_training(make_launch):
    control = Control()
    control.stop_at_target()

    result = run_training(make_launch(DEAF), control)

    assert result.reason == "target"
    control.stop_at_target()


def test_an_interruption_is_told_before_the_ranks_have_left(make_launch, run_until):
    script = """
        import pathlib, time
        from trainjob.progress import should_stop
        assert not should_stop()
        print("ready", flush=True)
        while not (should_stop() and pathlib.Path("told").exists()):
            time.sleep(0.01)
        print("saved", flush=True)
    """
    told = []
    launch = make_launch(script, grace_s=60.0)

    def note() -> None:
        told.append(lines(launch))
        (launch.code_dir / "told").touch()

    with pytest.raises(KeyboardInterrupt):
        run_until(launch, "ready", interrupt, control=Control(note))

    assert told == [["ready"]]
    assert lines(launch) == ["ready", "saved"]


def test_what_fails_at_an_interruption_takes_nothing_from_the_ranks(make_launch, run_until, caplog):
    launch = make_launch(LISTENING.format(saving_s=0.5))

    with pytest.raises(KeyboardInterrupt):
        run_until(launch, "ready", interrupt, control=Control(lambda: 1 // 0))

    assert lines(launch) == ["ready", "saved"]
    assert "ZeroDivisionError" in caplog.text


def test_no_interruption_is_told_when_the_training_ends_by_itself(make_launch):
    told: list[str] = []

    run_training(make_launch(""), Control(lambda: told.append("told")))
    with pytest.raises(TrainingFailed):
        run_training(make_launch("1 / 0"), Control(lambda: told.append("told")))

    assert told == []


def test_ranks_that_were_asked_to_leave_have_their_grace_after_the_flow_was_killed(make_launch):
    script = """
        import pathlib, time
        from trainjob.progress import should_stop
        assert not should_stop()
        print("ready", flush=True)
        while not (should_stop() and pathlib.Path("seen").exists()):
            time.sleep(0.01)
        time.sleep(3.0)
        print("saved", flush=True)
    """
    launch = make_launch(script, grace_s=300.0)
    with subprocess.Popen(
        [sys.executable, "-c", CALLER, pickle.dumps(launch).hex()],
        cwd=Path.cwd(),
        stderr=subprocess.DEVNULL,
    ) as caller:
        wait_until(lambda: launch.rank_log(0).exists() and lines(launch) == ["ready"])
        supervisor = read_record(launch, "supervisor")

        caller.send_signal(signal.SIGINT)
        wait_until(launch.stop_file.exists)
        caller.kill()

    assert supervisor["pid"] in marked_processes(launch)
    (launch.code_dir / "seen").touch()
    wait_until(lambda: not marked_processes(launch))
    assert lines(launch) == ["ready", "saved"]
    assert read_record(launch, "outcome") == {"reason": "stopped", "code": 0}


def kill_caller_of(launch) -> None:
    """Kill what runs a training, once its rank is ready."""
    command = [sys.executable, "-c", CALLER, pickle.dumps(launch).hex()]
    with subprocess.Popen(command, cwd=Path.cwd()) as caller:
        wait_until(lambda: launch.rank_log(0).exists() and lines(launch) == ["ready"])
        caller.kill()


def test_a_killed_flow_that_is_started_again_leaves_its_ranks_little_time(make_launch):
    launch = make_launch(LISTENING.format(saving_s=600), grace_s=600.0, is_restartable=True)
    kill_caller_of(launch)

    wait_until(lambda: not marked_processes(launch))
    ended = end_of_dead_flow(launch.records_dir)
    assert ended is not None
    assert ended.rule is not None
    assert ended.rule.name == "flow process died"
    assert ended.seconds is not None
    assert 0 < ended.seconds < PATIENCE_S


def test_a_killed_flow_that_nobody_starts_again_leaves_its_ranks_the_whole_grace(make_launch):
    launch = make_launch(LISTENING.format(saving_s=7.0), grace_s=60.0)
    kill_caller_of(launch)

    wait_until(lambda: not marked_processes(launch))
    assert lines(launch) == ["ready", "saved"]
