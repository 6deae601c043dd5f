"""What a failure says beside its first line: where, when, its name, and whether to try again."""

import json
import pickle
import re
import socket

import pytest

from tests.launch.rank_records import ENDED, ended, error, none_began, ranks
from trainjob.errors import TrainingFailed
from trainjob.failure import Failure
from trainjob.launch.failure import (
    Explained,
    RanksAbandoned,
    StartFailed,
    TrainingStalled,
    training_error,
)
from trainjob.launch.hidden import hiding
from trainjob.launch.records import ExitRecord, RankRecords
from trainjob.launch.stall import StalledRank
from trainjob.launch.supervision import Finished


def failure_of(
    make_launch, records: list[RankRecords], finished: Finished | None = ENDED, **changes
) -> Failure:
    found = training_error(make_launch(world_size=len(records), **changes), records, finished)
    assert isinstance(found, Explained)
    assert found.restart == found.failure.restart
    return found.failure


def test_a_failure_says_where_and_when_it_was(make_launch):
    at = 1_772_000_000_000_000_000

    found = failure_of(make_launch, ranks((error(at=at), ended())), attempt=2)

    assert (found.attempt, found.node) == (2, socket.gethostname())
    assert found.time == "2026-02-25T06:13:20Z"


def test_a_rank_without_an_end_failed_about_now(make_launch):
    found = failure_of(make_launch, ranks((None, None)), Finished("finished", 0))

    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", found.time)


def test_the_logs_that_exist_are_named(make_launch):
    launch = make_launch(world_size=2)
    launch.log_dir.mkdir()
    launch.rank_log(0).touch()
    launch.launcher_log.touch()

    found = training_error(launch, ranks((error(), ended()), (None, ended(0))), ENDED)

    assert found is not None
    assert found.failure.log_files == (launch.rank_log(0), launch.launcher_log)


@pytest.mark.parametrize(
    ("failed", "exited", "rule", "restart"),
    [
        (error(), ended(), None, False),
        (error("", kind="SystemExit", code=3), ended(3), None, False),
        (None, ended(3), None, False),
        (None, ended(-50), None, True),
        (None, ended(-9), "killed without a trace", True),
        (None, ended(137), "killed without a trace", True),
        (None, ended(-15), "stopped from outside", True),
        (None, ended(-4), "illegal instruction", False),
        (
            error("No module named 'cv2'", kind="ModuleNotFoundError"),
            ended(),
            "module not found",
            0,
        ),
        (
            error("CUDA out of memory. Tried", kind="torch.OutOfMemoryError"),
            ended(),
            "device out",
            0,
        ),
        (error("Connection closed by peer", kind="RuntimeError"), ended(), "connection to", True),
    ],
)
def test_what_failed_decides_whether_another_try_can_help(
    make_launch, failed, exited, rule, restart
):
    found = failure_of(make_launch, ranks((failed, exited)))

    assert found.restart == bool(restart)
    assert (found.rule is None) == (rule is None)
    assert rule is None or (found.rule and found.rule.name.startswith(rule))


def test_the_message_says_what_the_failure_is_called_and_what_to_do(make_launch):
    failed = error("No module named 'cv2'", kind="ModuleNotFoundError")

    message = str(training_error(make_launch(), ranks((failed, ended())), ENDED)).splitlines()

    assert message[1].startswith("module not found: The script imports cv2")
    assert message[2].startswith("next: ")
    assert message[3].startswith("log: ")


def test_a_rank_that_left_is_named_by_what_it_wrote_last(make_launch):
    launch = make_launch()
    launch.log_dir.mkdir()
    launch.rank_log(0).write_text("usage: train.py\ntrain.py: error: unrecognized arguments: --x\n")
    left = error("", kind="SystemExit", code=2, log_offset=launch.rank_log(0).stat().st_size)

    found = training_error(launch, ranks((left, ended(2))), ENDED)

    assert found is not None
    assert found.failure.rule is not None
    assert found.failure.rule.name == "wrong argument"


def failure_after(make_launch, line: str, exited: ExitRecord, failed=None) -> Failure:
    """Return the failure of a rank that wrote a line, and more after it, before it ended."""
    launch = make_launch()
    launch.log_dir.mkdir()
    launch.rank_log(0).write_text(line + "\n" + "".join(f"step {i}\n" for i in range(6)))
    found = training_error(launch, ranks((failed, exited)), ENDED)
    assert found is not None
    return found.failure


@pytest.mark.parametrize(
    "line",
    [
        "No module named 'apex', falling back",
        "step 3 loss=nan skipped by GradScaler",
        "Permission denied: /root/.cache/matplotlib, using /tmp",
        "NCCL WARN NET/IB : No device found.",
    ],
)
@pytest.mark.parametrize(
    ("code", "rule", "restart"),
    [
        (-9, "killed without a trace", True),
        (137, "killed without a trace", True),
        (-15, "stopped from outside", True),
        (143, "stopped from outside", True),
        (-11, "segmentation fault", True),
        (-4, "illegal instruction", False),
        (-24, "CPU time limit", False),
    ],
)
def test_a_rank_that_was_killed_is_not_named_by_what_it_had_written(
    make_launch, line, code, rule, restart
):
    found = failure_after(make_launch, line, ended(code))

    assert found.rule is not None
    assert (found.rule.name, found.restart) == (rule, restart)


def test_what_gave_up_by_itself_is_named_by_what_it_wrote(make_launch):
    line = "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5)"

    found = failure_after(make_launch, line, ended(-6))

    assert found.rule is not None
    assert found.rule.name == "collective timed out"


@pytest.mark.parametrize(
    "line",
    [
        "node1:41:41 [0] NCCL WARN NET/IB : No device found.",
        "tensorboard: Connection refused, will retry",
        "port 6006: Address already in use, taking 6007",
        "Warning: Max retries exceeded, no telemetry",
    ],
)
def test_a_network_that_failed_long_before_a_rank_left_is_not_why_it_did(make_launch, line):
    by_itself = failure_after(make_launch, line, ended(3), error("", kind="SystemExit", code=3))
    command = failure_after(make_launch, line, ended(3))

    assert (by_itself.rule, by_itself.restart) == (None, False)
    assert (command.rule, command.restart) == (None, False)


def test_a_network_error_that_a_command_raised_is_named_though_its_launcher_wrote_more(make_launch):
    line = (
        "[rank1]: torch.distributed.DistBackendError: NCCL error in: /x.cpp:1191, unhandled system"
    )

    found = failure_after(make_launch, line, ended(1))

    assert found.rule is not None
    assert (found.rule.name, found.restart) == ("NCCL network error", True)


def test_an_exception_is_named_by_the_one_it_came_from(make_launch):
    chain = (
        "Traceback (most recent call last):\n  File 'x'\nMemoryError\n\nThe above exception was "
        "the direct cause of the following exception:\n\nRuntimeError: no batch\n"
    )

    found = failure_of(
        make_launch, ranks((error("no batch", kind="RuntimeError", traceback=chain), ended()))
    )

    assert found.rule is not None
    assert found.rule.name == "out of memory"


@pytest.mark.parametrize(
    ("finished", "name", "restart"),
    [
        (None, "supervisor died", True),
        (Finished("stopped", 0), "supervisor died", True),
        (Finished("finished", -9), "launcher died", True),
        (Finished("finished", 1), "launcher died", True),
        (Finished("orphaned", -9), "flow process died", True),
    ],
)
def test_what_dies_above_the_ranks_may_not_die_again(make_launch, finished, name, restart):
    orphans = ranks((None, ended(-9, orphaned=True)))
    launch = make_launch()

    found = training_error(launch, orphans, finished)

    assert isinstance(found, RanksAbandoned)
    assert isinstance(found, TrainingFailed)
    assert found.restart is restart
    assert found.failure.rule is not None
    assert found.failure.rule.name == name
    assert found.failure.rank is None
    copy = pickle.loads(pickle.dumps(found))
    assert (type(copy), copy.failure) == (RanksAbandoned, found.failure)


def test_a_launcher_that_was_killed_is_not_named_by_what_it_had_written(make_launch):
    launch = make_launch()
    launch.log_dir.mkdir()
    launch.launcher_log.write_text("Warning: No space left on device, using memory\n")
    orphans = ranks((None, ended(-9, orphaned=True)))

    found = training_error(launch, orphans, Finished("finished", -9))

    assert found is not None
    assert found.failure.rule is not None
    assert found.failure.rule.name == "launcher died"


@pytest.mark.parametrize(
    ("line", "code", "restart"),
    [
        ("no such option", 2, False),
        ("message: address already in use, name: EADDRINUSE", 1, True),
        ("starting", -9, True),
    ],
)
def test_a_start_that_failed_is_tried_again_only_if_that_may_pass(make_launch, line, code, restart):
    launch = make_launch(world_size=2)
    launch.log_dir.mkdir()
    launch.launcher_log.write_text(f"{line}\n")

    found = training_error(launch, none_began(2), Finished("finished", code))

    assert isinstance(found, StartFailed)
    assert found.restart is restart


STALLED = {
    "quiet_s": 600.0,
    "behind": 1,
    "ranks": [
        {
            "rank": rank,
            "last_step": step,
            "waits_in": wait,
            "state": "idle",
            "cpu_s": 1.5,
            "stack": 'Current thread 0x1:\n  File "/code/loader.py", line 88 in next_batch\n',
        }
        for rank, step, wait in [(0, 42, "all_reduce"), (1, 41, None), (2, 42, "all_reduce")]
    ],
}
QUIET = "stalled: nothing was seen of the training for 10m"


def stall_in(launch, said: object) -> Failure:
    launch.records_dir.mkdir(parents=True)
    (launch.records_dir / "stall.json").write_text(json.dumps(said))
    # Those that are behind are killed in the end; that is not why the run failed.
    killed = ranks(*[(None, ended(-9, told=5))] * 3)
    found = training_error(launch, killed, Finished("stalled", 0))
    assert isinstance(found, TrainingStalled)
    assert found.restart
    return found.failure


def test_a_stall_without_a_rank_that_is_behind_blames_none(make_launch):
    launch = make_launch(world_size=3)

    found = stall_in(launch, STALLED | {"behind": None})

    assert found.rank is None
    assert found.log_file == launch.rank_log(0)


def test_a_stall_names_the_rank_that_is_behind(make_launch):
    found = stall_in(make_launch(world_size=3), STALLED)

    assert found.headline == (
        f"{QUIET}; rank 1 is behind (step 41, the others 42; it is in loader.py:88 next_batch "
        "while the others wait in all_reduce)"
    )
    assert found.rank == 1
    assert found.rule is not None
    assert found.rule.name == "stalled"
    assert found.stall is not None
    assert [rank.last_step for rank in found.stall.ranks] == [42, 41, 42]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"behind": None}, ""),
        ({"behind": None, "waits": "barrier"}, "; all ranks wait in barrier"),
        (
            {"steps": [42, 40, 44]},
            "; rank 1 is behind (step 40, the others 42 to 44; it is in load",
        ),
        ({"steps": [None] * 3, "stack": ""}, "; rank 1 is behind"),
        (
            {"waits": "barrier"},
            "; rank 1 is behind (step 41, the others 42; it waits in barrier at",
        ),
        ({"num": 1, "behind": 0}, "; rank 0 (step 42; it is in loader.py:88 next_batch)"),
    ],
)
def test_a_stall_says_what_is_known_and_no_more(make_launch, change, text):
    said = json.loads(json.dumps(STALLED))
    said["behind"] = change.get("behind", 1) if "behind" in change else 1
    said["ranks"] = said["ranks"][: change.get("num", 3)]
    for rank, step in zip(said["ranks"], change.get("steps", ()), strict=False):
        rank["last_step"] = step
    for rank in said["ranks"]:
        rank["stack"] = change.get("stack", rank["stack"])
        rank["waits_in"] = change.get("waits", rank["waits_in"] if "num" not in change else None)

    found = stall_in(make_launch(world_size=3), said)

    assert found.headline.startswith(QUIET + text)
    assert text or found.headline == QUIET


@pytest.mark.parametrize("said", [{}, [], {"quiet_s": 1}])
def test_a_stall_without_a_readable_record_is_still_a_stall(make_launch, said):
    found = stall_in(make_launch(world_size=3, stall_s=90.0), said)

    assert found.headline == "stalled: nothing was seen of the training for 1m30s"


def test_a_stack_that_ends_in_our_own_code_names_the_line_of_the_user():
    stack = """Current thread 0x01 (most recent call first):
  File "/opt/trainjob/launch/user_script.py", line 9 in _leave_mpi
  File "/work/code/train.py", line 7 in main
"""
    rank = StalledRank(0, 1, None, "is idle", 0.0, stack)

    assert rank.where == "train.py:7 main"


def test_a_secret_that_the_headline_would_cut_is_hidden_first(make_launch):
    message = "x" * 295 + "key-of-job"

    with hiding(["key-of-job"]):
        found = failure_of(make_launch, ranks((error(message), ended())))

    assert found.headline == f"rank 0 of 1 failed: ValueError: {'x' * 295}*** (exit code 1)"


def test_the_name_of_a_failure_repeats_no_secret(make_launch):
    message = "No module named 'key-of-job'"

    with hiding(["key-of-job"]):
        found = failure_of(
            make_launch, ranks((error(message, kind="ModuleNotFoundError"), ended()))
        )

    assert found.rule is not None
    assert "***" in found.rule.meaning + found.rule.next_step
    assert "key-of-job" not in repr(found)
