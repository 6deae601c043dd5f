import pickle

import pytest

from tests.launch.rank_records import ENDED, ended, error, none_began, ranks
from trainjob.errors import LaunchError, TrainingFailed
from trainjob.launch.failure import RankFailed, training_error
from trainjob.launch.first_failure import first_failure
from trainjob.launch.records import LAUNCH_ERROR, RankRecords
from trainjob.launch.supervision import Finished


def headline(make_launch, records: list[RankRecords], finished: Finished | None = ENDED) -> str:
    launch = make_launch(world_size=len(records))
    return str(training_error(launch, records, finished)).partition("\n")[0]


def test_the_earliest_failure_is_the_cause():
    found = first_failure(ranks((error(at=12), ended()), (error(at=11), ended())))

    assert found is not None
    assert found.rank == 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("RuntimeError", "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]"),
        ("ConnectionResetError", "[Errno 104] Connection reset by peer"),
        ("BrokenPipeError", "[Errno 32] Broken pipe"),
        ("RuntimeError", "Timed out waiting 1800000ms for recv operation to complete"),
        ("RuntimeError", "[gloo/transport/tcp/buffer.cc] Application timeout caused pair closure"),
        ("torch.distributed.DistBackendError", "NCCL error: remote process exited"),
        ("torch.distributed.DistNetworkError", "recv failed"),
        ("mpi4py.MPI.Exception", "MPI_ERR_PROC_FAILED: process failure"),
    ],
)
def test_what_breaks_with_the_connection_follows_from_another_rank(kind, message):
    follows = error(message, at=5, kind=kind)

    found = first_failure(ranks((follows, ended()), (error(at=10), ended())))

    assert found is not None
    assert found.rank == 1


def test_a_broken_connection_is_the_cause_if_nothing_else_failed():
    found = first_failure(ranks((error("Broken pipe", at=5), ended()), (None, ended(0))))

    assert found is not None
    assert found.rank == 0


def test_a_rank_that_was_told_to_leave_is_never_the_cause():
    told = ended(code=-15, at=6, told=5)
    by_handler = (error("143", at=6, kind="SystemExit", code=143), ended(143, at=7, told=5))

    found = first_failure(ranks((None, told), by_handler, (error(at=10), ended())))

    assert found is not None
    assert found.rank == 2


def test_a_rank_that_failed_before_it_was_told_to_leave_is_the_cause():
    found = first_failure(ranks((None, ended(-15, at=9, told=8)), (error(at=7), ended(1, 30, 8))))

    assert found is not None
    assert found.rank == 1


def test_a_killed_rank_comes_before_those_that_notice_it(make_launch):
    notices = error("Connection closed by peer", at=10)
    records = ranks((notices, ended()), (None, ended(code=-9, at=11)))

    assert headline(make_launch, records) == (
        "rank 1 of 2 was killed first by SIGKILL (often out of memory)"
    )


def test_a_rank_without_an_end_on_record_was_killed_with_the_others():
    found = first_failure(ranks((None, None), (error(), ended())))

    assert found is not None
    assert found.rank == 1


def test_no_failure_is_no_error(make_launch):
    launch = make_launch(world_size=2)

    assert training_error(launch, ranks((None, ended(0)), (None, ended(0))), ENDED) is None


def test_ranks_that_all_ended_well_count_more_than_what_died_above_them(make_launch):
    launch = make_launch(world_size=2)
    well = ranks((None, ended(0)), (None, ended(0)))

    assert training_error(launch, well, None) is None
    assert training_error(launch, well, Finished("finished", -9)) is None


@pytest.mark.parametrize(
    ("failed", "exited", "text"),
    [
        (error(), ended(), "rank 0 of 1 failed: ValueError: no such class (exit code 1)"),
        (error(""), ended(), "rank 0 of 1 failed: ValueError (exit code 1)"),
        (error("a\nb"), ended(), "rank 0 of 1 failed: ValueError: a (exit code 1)"),
        (
            error("", kind="SystemExit", code=3),
            ended(3),
            "rank 0 of 1 failed: sys.exit (exit code 3)",
        ),
        (
            error("bad data", kind="SystemExit"),
            ended(),
            "rank 0 of 1 failed: bad data (exit code 1)",
        ),
        (None, ended(3), "rank 0 of 1 failed with exit code 3"),
        (None, ended(137), "rank 0 of 1 failed with exit code 137, as after SIGKILL"),
        (
            None,
            ended(-11),
            "rank 0 of 1 was killed by SIGSEGV (invalid memory access in native code)",
        ),
        (None, ended(-15), "rank 0 of 1 was killed by SIGTERM (which did not come from this run)"),
        (None, ended(-50), "rank 0 of 1 was killed by signal 50"),
    ],
)
def test_the_first_line_says_it_all(make_launch, failed, exited, text):
    assert headline(make_launch, ranks((failed, exited))) == text


def test_a_message_of_any_length_makes_a_short_first_line(make_launch):
    assert len(headline(make_launch, ranks((error("x" * 10**6), ended())))) < 400


def test_the_message_shows_traceback_last_lines_and_log_once_each(make_launch):
    launch = make_launch()
    launch.log_dir.mkdir()
    before = "".join(f"line {i}\n" for i in range(30))
    trace = 'Traceback (most recent call last):\n  File "train.py"\nValueError: no such class\n'
    launch.rank_log(0).write_text(before + trace)
    failed = error(traceback=trace, log_offset=len(before))

    found = training_error(launch, ranks((failed, ended())), ENDED)

    assert isinstance(found, RankFailed)
    shown = [f"  line {i}" for i in range(10, 30)]
    assert str(found).splitlines() == [
        "rank 0 of 1 failed: ValueError: no such class (exit code 1)",
        *trace.splitlines(),
        "last 20 lines of rank 0:",
        *shown,
        f"log: {launch.rank_log(0)}",
    ]


def test_the_error_holds_what_is_known_and_can_be_stored(make_launch):
    launch = make_launch(world_size=2)
    found = training_error(launch, ranks((None, ended(0)), (None, ended(-11))), ENDED)

    copy = pickle.loads(pickle.dumps(found))

    assert isinstance(copy, RankFailed)
    assert isinstance(copy, TrainingFailed)
    assert str(copy) == str(found)
    assert not copy.retryable
    assert (copy.failure.rank, copy.failure.signal, copy.failure.exit_code) == (1, "SIGSEGV", None)
    assert copy.failure.log_file == launch.rank_log(1)


def test_a_launcher_that_fails_before_the_ranks_is_shown_with_its_last_lines(make_launch):
    launch = make_launch(world_size=2)
    launch.log_dir.mkdir()
    launch.launcher_log.write_text("starting\nno such option\n")

    found = training_error(launch, none_began(2), Finished("finished", 2))

    assert isinstance(found, LaunchError)
    assert str(found).splitlines() == [
        "the launcher (torchrun) failed with exit code 2 before any rank began",
        "last 2 lines of the launcher:",
        "  starting",
        "  no such option",
        f"log: {launch.launcher_log}",
    ]


def test_a_launcher_that_starts_nothing_is_an_error_even_if_it_says_it_is_well(make_launch):
    found = training_error(make_launch(world_size=2), none_began(2), Finished("finished", 0))

    assert isinstance(found, LaunchError)


def test_a_rank_that_could_not_start_is_told_in_its_words(make_launch):
    failed = error("asked for the command 'x', found: no", kind=LAUNCH_ERROR)

    found = training_error(make_launch(), ranks((failed, ended(127))), ENDED)

    assert isinstance(found, LaunchError)
    assert str(found) == "asked for the command 'x', found: no"


def test_a_killed_launcher_is_the_cause_of_ranks_that_end_with_it(make_launch):
    orphans = ranks((None, ended(-9, orphaned=True)), (None, ended(-9, orphaned=True)))

    assert headline(make_launch, orphans, Finished("finished", -9)) == (
        "the launcher (torchrun) was killed by SIGKILL (often out of memory) before the ranks had "
        "ended, and they with it"
    )


def test_a_killed_supervisor_is_the_cause_of_ranks_that_end_with_it(make_launch):
    orphans = ranks((None, ended(-9, orphaned=True)), (None, None))
    killed_before_their_stubs_saw_why = ranks((None, ended(-9)), (None, ended(-9)))

    for found in (orphans, killed_before_their_stubs_saw_why):
        assert headline(make_launch, found, None).startswith("the supervisor of the run died")


def test_a_supervisor_that_a_stranger_stopped_is_told(make_launch):
    stopped = ranks((None, ended(-15, told=5)))

    found = headline(make_launch, stopped, Finished("stopped", 0))

    assert found.startswith("the supervisor of the run was asked by a signal to stop it")


def test_a_rank_that_a_stranger_stopped_is_told(make_launch):
    stopped = ranks((None, ended(-15, told=5)), (None, ended(-15, told=8)))

    assert headline(make_launch, stopped, Finished("finished", 0)).startswith("rank 0 of 2 was kil")


def test_missing_logs_do_not_hide_the_failure(make_launch):
    launch = make_launch()

    found = training_error(launch, ranks((None, ended(3))), ENDED)

    assert isinstance(found, RankFailed)
    assert found.failure.last_lines == ()
    assert not launch.rank_log(0).exists()
