"""A rank that leaves without an error while others need it is the cause of what they get of it."""

import json
import re

import pytest

from tests.launch.conftest import marked_processes
from tests.launch.rank_records import ENDED, ended, error, ranks
from trainjob.failure import Failure
from trainjob.launch.failure import Explained, TrainingStalled, training_error
from trainjob.launch.first_failure import left_before
from trainjob.launch.launch import Launch
from trainjob.launch.records import ErrorRecord, ExitRecord, RankRecords
from trainjob.launch.supervision import Finished
from trainjob.launch.training import run_training

LOST = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]"
SECOND_NS = 10**9


def lost(at: int) -> tuple[ErrorRecord, ExitRecord]:
    return error(LOST, at=at, kind="RuntimeError"), ended(at=at + 1)


def done(at: int, exited: ExitRecord | None = None) -> RankRecords:
    return RankRecords(1, True, None, exited, done_ns=at)


def failure_of(
    make_launch, records: list[RankRecords], finished: Finished = ENDED, **changes
) -> Failure:
    found = training_error(make_launch(world_size=len(records), **changes), records, finished)
    assert isinstance(found, Explained)
    return found.failure


@pytest.mark.parametrize(
    "left",
    [
        RankRecords(1, True, None, ended(0, at=5)),
        RankRecords(1, True, None, ended(0, at=10 * SECOND_NS + 5_000_000)),
        done(5, ended(0, at=20 * SECOND_NS)),
        done(5, ended(-15, at=20 * SECOND_NS, told=15 * SECOND_NS)),
        done(5),
    ],
)
def test_a_rank_that_left_is_named_and_not_the_one_that_lost_it(make_launch, left):
    [loser] = ranks(lost(at=10 * SECOND_NS))

    found = failure_of(make_launch, [loser, left])

    assert found.headline == (
        "rank 1 of 2 left early, without an error; then rank 0 failed: RuntimeError: "
        f"{LOST} (exit code 1)"
    )
    assert found.rule is not None
    assert (found.rule.name, found.restart) == ("a rank left early", False)
    assert (found.ended, found.rank) == ("left", 0)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(RankRecords(1, True, None, ended(0, at=30 * SECOND_NS)), id="later"),
        pytest.param(RankRecords(1, True, None, ended(0, at=9, told=8)), id="told-to-leave"),
        pytest.param(done(9, ended(0, at=10, told=8)), id="done-when-told-to-leave"),
        pytest.param(RankRecords(1, True, None, ended(-15, at=9, told=8)), id="terminated"),
        pytest.param(RankRecords(1, True, None, None), id="killed-with-its-stub"),
    ],
)
def test_a_rank_that_was_there_is_not_the_cause(make_launch, other):
    [loser] = ranks(lost(at=10 * SECOND_NS))

    found = failure_of(make_launch, [loser, other])

    assert found.headline.startswith("rank 0 of 2 failed first: RuntimeError: [/pytorch")
    assert found.restart


def test_of_several_that_left_the_first_is_named():
    loser, *_ = records = [
        *ranks(lost(at=10 * SECOND_NS)),
        RankRecords(1, True, None, ended(0, at=7), done_ns=6),
        RankRecords(2, True, None, ended(0, at=5)),
    ]

    found = left_before(records, loser)

    assert found is not None
    assert found.rank == 2


@pytest.mark.parametrize(
    "failed",
    [
        error("no such class", at=10),
        error("[Errno 111] Connection refused", at=10, kind="ConnectionRefusedError"),
        error("HTTPSConnectionPool: Max retries exceeded", at=10, kind="ConnectionError"),
    ],
)
def test_what_has_nothing_to_do_with_other_ranks_is_not_laid_on_one_that_left(make_launch, failed):
    found = failure_of(make_launch, ranks((failed, ended(at=11)), (None, ended(0, at=5))))

    assert found.headline.startswith("rank 0 of 2 failed first: ")
    assert found.ended == "exception"


def test_ranks_that_were_asked_to_leave_may_leave_at_different_times(make_launch):
    records = ranks(lost(at=10), (None, ended(0, at=5)))

    found = failure_of(make_launch, records, Finished("auto_stop", 0))

    assert found.restart


def test_a_rank_that_mpirun_kills_for_one_that_left_is_not_named(make_launch):
    records = ranks((None, None), (None, ended(0, at=5)))

    found = failure_of(make_launch, records, launcher="mpi")
    elsewhere = failure_of(make_launch, records)

    assert found.headline == (
        "rank 1 of 2 left early, without MPI_Finalize; mpirun killed the others for it"
    )
    assert found.rank == 1
    assert not found.restart
    assert elsewhere.restart


@pytest.mark.parametrize(
    ("last", "is_early"),
    [
        ({"waits_in": "Finalize", "state": "has left and waits for the others to leave"}, True),
        ({"waits_in": None, "state": "has ended"}, True),
        ({"waits_in": None, "state": "is idle"}, False),
    ],
)
def test_a_stall_of_those_that_wait_for_one_that_left_is_laid_on_it(make_launch, last, is_early):
    launch = make_launch(world_size=2)
    launch.records_dir.mkdir(parents=True)
    told = {"last_step": None, "cpu_s": 1.0, "stack": ""}
    waits = {"rank": 0, "waits_in": "allreduce", "state": "waits in a collective"} | told
    said = {"quiet_s": 60.0, "behind": 1, "ranks": [waits, {"rank": 1} | last | told]}
    (launch.records_dir / "stall.json").write_text(json.dumps(said))

    found = training_error(launch, ranks((None, None), (None, None)), Finished("stalled", 0))

    assert isinstance(found, TrainingStalled)
    assert found.failure.rule is not None
    assert ("rank 1 left early" in found.failure.headline) is is_early
    assert (found.failure.rule.name == "a rank left early") is is_early
    assert found.restart is not is_early


def run_uneven(launch: Launch) -> Failure:
    with pytest.raises(Explained) as caught:
        run_training(launch)
    assert not marked_processes(launch)
    return caught.value.failure


TORCH = """
    import os, torch, torch.distributed as dist
    dist.init_process_group("gloo")
    for step in range(3 if dist.get_rank() == 1 else 5):
        dist.all_reduce(torch.ones(1))
    {leave}
"""


@pytest.mark.parametrize("leave", ["", "dist.get_rank() == 1 and os._exit(0)"])
def test_ranks_of_torch_with_uneven_data_say_which_had_less(make_launch, leave):
    found = run_uneven(make_launch(TORCH.format(leave=leave), world_size=2))

    assert found.headline.startswith(
        "rank 1 of 2 left early, without an error; then rank 0 failed: RuntimeError: ["
    )
    assert not found.restart
    assert "all_reduce" in found.traceback


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("leave", "headline"),
    [
        ("", r"stalled: nothing was seen of the training for \ds; rank 1 left early \(it waits in"),
        ("os._exit(0)", "rank 1 of 2 left early, without MPI_Finalize; mpirun killed the others"),
    ],
)
def test_ranks_of_mpi_with_uneven_data_say_which_had_less(make_launch, leave, headline):
    script = f"""
        import os
        from mpi4py import MPI
        for step in range(3 if MPI.COMM_WORLD.rank == 1 else 5):
            MPI.COMM_WORLD.allreduce(1)
        {leave}
    """

    found = run_uneven(make_launch(script, launcher="mpi", world_size=2, stall_s=1.5))

    assert re.match(headline, found.headline)
    assert found.rule is not None
    assert (found.rule.name, found.restart) == ("a rank left early", False)
