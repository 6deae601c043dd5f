"""Signals by which somebody else has a training leave: it has not finished, whatever its code."""

import os
import signal
from collections.abc import Callable

import pytest

from tests.launch.conftest import marked_processes, read_record
from tests.launch.rank_records import ENDED, ended, ranks
from tests.launch.test_stop_requests import LISTENING
from tests.launch.test_stopping import launcher_pid, pid_of
from tests.waiting import wait_until
from trainjob.launch.failure import Explained, RankFailed, RanksAbandoned, training_error
from trainjob.launch.launch import Launch
from trainjob.launch.records import ExitRecord, RankRecords
from trainjob.launch.supervision import Finished

SAVES_AT_SIGTERM = """
    import signal, sys, time
    {before}
    def save(*_):
        print("saved", flush=True)
        {after}
        sys.exit(0)
    signal.signal(signal.SIGTERM, save)
    {barrier}
    print("ready", flush=True)
    time.sleep(60)
"""
WITH_MPI = {
    "before": "from mpi4py import MPI",
    "barrier": "MPI.COMM_WORLD.Barrier()",
    "after": "",
}
WITHOUT_MPI = {"before": "", "barrier": "", "after": ""}


def terminate_stub(launch: Launch) -> None:
    os.kill(read_record(launch, "begin-0")["pid"], signal.SIGTERM)


def terminate_launcher(launch: Launch) -> None:
    os.kill(launcher_pid(launch), signal.SIGTERM)


def left(code: int, told: int | None, done: int | None) -> RankRecords:
    return RankRecords(0, True, None, ExitRecord(code, 20, told, orphaned=False), done)


def test_ranks_that_save_when_the_supervisor_gets_sigterm_have_not_finished(make_launch, run_until):
    launch = make_launch(LISTENING.format(saving_s=0), grace_s=30.0)

    with pytest.raises(RanksAbandoned, match="was asked by a signal to stop it") as caught:
        run_until(launch, "ready", lambda: os.kill(pid_of(launch, "supervisor.py"), signal.SIGTERM))

    assert read_record(launch, "exit-0")["code"] == 0
    assert caught.value.restart
    assert not marked_processes(launch)


@pytest.mark.parametrize(
    ("launcher", "size", "changes", "terminate"),
    [
        pytest.param("single", 1, WITHOUT_MPI, terminate_stub, id="stub"),
        pytest.param("torchrun", 2, WITHOUT_MPI, terminate_launcher, id="torchrun"),
        pytest.param("mpi", 2, WITH_MPI, terminate_launcher, id="mpi", marks=pytest.mark.mpi),
    ],
)
def test_ranks_that_save_at_the_sigterm_of_somebody_else_have_not_finished(
    make_launch,
    run_until,
    launcher: str,
    size: int,
    changes: dict[str, str],
    terminate: Callable[[Launch], None],
):
    script = SAVES_AT_SIGTERM.format(**changes)
    launch = make_launch(script, launcher=launcher, world_size=size, grace_s=30.0)

    def terminate_when_all_listen() -> None:
        logs = [launch.rank_log(rank) for rank in range(size)]
        wait_until(lambda: all(log.exists() and "ready" in log.read_text() for log in logs))
        terminate(launch)

    with pytest.raises(Explained) as caught:
        run_until(launch, "ready", terminate_when_all_listen)

    assert "saved" in launch.rank_log(0).read_text()
    assert caught.value.restart


def test_a_rank_that_left_with_0_after_a_strange_sigterm_is_named(make_launch):
    found = training_error(make_launch(), [left(0, told=15, done=None)], Finished("finished", 0))

    assert isinstance(found, RankFailed)
    assert found.failure.headline == (
        "rank 0 of 1 was asked to leave by SIGTERM, which did not come from this run, and left"
    )
    assert found.failure.rank == 0
    assert found.restart


@pytest.mark.parametrize(
    ("reason", "told", "done"),
    [("finished", 15, 14), ("finished", None, None), ("auto_stop", 15, None), ("target", 15, 16)],
    ids=["done before", "not told", "told by us", "told at its target"],
)
def test_a_rank_that_left_with_0_by_itself_or_for_us_is_no_failure(make_launch, reason, told, done):
    finished = Finished(reason, 0)

    assert training_error(make_launch(), [left(0, told, done)], finished) is None


def test_a_stop_by_a_signal_counts_though_all_ranks_left_with_0(make_launch):
    well = ranks((None, ended(0)), (None, ended(0)))

    found = training_error(make_launch(world_size=2), well, Finished("stopped", 0))

    assert isinstance(found, RanksAbandoned)
    assert "was asked by a signal to stop it" in found.failure.headline
    assert training_error(make_launch(world_size=2), well, ENDED) is None
