"""Of all that a rank said, its last words and the exception that it raised name its failure."""

import importlib
import io
import pickle
import traceback
from collections.abc import Callable

import pytest

from tests.launch.rank_records import ENDED, ended, error, ranks
from trainjob.failure import Failure
from trainjob.launch.failure import training_error
from trainjob.launch.records import ErrorRecord, ExitRecord

SYS_EXIT = error("", kind="SystemExit", code=3)
LOST = "RuntimeError: [../third_party/gloo/transport/tcp/pair.cc:534] Connection closed by peer"
WATCHDOG = "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5)"
STEPS = [f"step {i}" for i in range(30)]
TRACEBACK = ["Traceback (most recent call last):", '  File "/code/train.py", line 3, in <module>']
NO_APEX = [*TRACEBACK, "    import apex", "ModuleNotFoundError: No module named 'apex'"]
CAUSE = ["", "The above exception was the direct cause of the following exception:", ""]
CONTEXT = ["", "During handling of the above exception, another exception occurred:", ""]
DUMP = [
    "Fatal Python error: Aborted",
    "",
    "Thread 0x00007ff770882b81 (most recent call first):",
    *['  File "/opt/python/threading.py", line 327 in wait'] * 80,
    "  ...",
    "",
    "Current thread 0x00007ff770882b80 (most recent call first):",
    '  File "/code/train.py", line 5 in <module>',
    "",
    "Extension modules: numpy._core._multiarray_umath (total: 1)",
]


def failure(make_launch, exited: ExitRecord, failed: ErrorRecord | None, *lines: str) -> Failure:
    launch = make_launch()
    launch.log_dir.mkdir()
    launch.rank_log(0).write_text("".join(f"{line}\n" for line in lines))
    found = training_error(launch, ranks((failed, exited)), ENDED)
    assert found is not None
    return found.failure


def failure_of_raised(make_launch, script: Callable[[], object]) -> Failure:
    """Return the failure of a script that raises, recorded as the bootstrap does it."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any that the script raises
        script()
    raised = caught.value
    trace = "".join(traceback.format_exception(raised))
    record = error(str(raised), kind=type(raised).__name__, traceback=trace)
    return failure(make_launch, ended(), record)


def named(found: Failure) -> tuple[str | None, bool]:
    return (found.rule.name if found.rule else None, found.restart)


@pytest.mark.parametrize(
    "early",
    [
        ["fused optimizer not used: No module named 'apex'"],
        ["could not raise priority: Operation not permitted (ignored)"],
        NO_APEX,
    ],
)
@pytest.mark.parametrize("between", [0, 1, 30])
def test_the_exception_that_a_command_ended_with_goes_before_earlier_lines(
    make_launch, early, between
):
    lines = [*early, *STEPS[:between], *TRACEBACK, "    train()", LOST]

    found = failure(make_launch, ended(1), None, *lines)

    assert named(found) == ("connection to another rank lost", True)


@pytest.mark.parametrize("failed", [SYS_EXIT, None])
@pytest.mark.parametrize(
    "early",
    [
        "DataLoader worker (pid 77) is killed by signal: Terminated (expected, old epoch)",
        "DataLoader timed out after 5 seconds, one batch skipped",
        "NVRM: Xid 31 of the other card",
        "step 3 loss: nan (skipped by GradScaler, scale halved)",
    ],
)
def test_what_passed_long_before_a_rank_left_makes_no_restart_and_no_name(
    make_launch, failed, early
):
    lines = [early, *STEPS, "validation set has 0 positives, giving up"]

    assert named(failure(make_launch, ended(3), failed, *lines)) == (None, False)


RESET = [*TRACEBACK, "    upload()", "ConnectionResetError: [Errno 104] Connection reset by peer"]


@pytest.mark.parametrize("failed", [SYS_EXIT, None])
def test_an_exception_that_was_survived_makes_no_restart_and_no_name(make_launch, failed):
    lines = [*RESET, *["retry ok"] * 40, "ERROR: accuracy below threshold"]

    assert named(failure(make_launch, ended(1), failed, *lines)) == (None, False)


@pytest.mark.parametrize(
    "last",
    [
        "  exitcode  : 1 (pid: 123)",
        "srun: error: node1: task 0: Exited with exit code 1",
        "Primary job  terminated normally, but 1 process returned a non-zero exit code.",
        "YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Hangup (signal 1)",
        "[launch.py:325:sigkill_handler] ['python', 'train.py'] exits with return code = 1",
    ],
)
def test_the_exception_of_a_rank_is_found_above_the_words_of_its_launcher(make_launch, last):
    lines = [*RESET, *["the launcher goes on"] * 20, last]

    assert named(failure(make_launch, ended(1), None, *lines)) == ("connection lost", True)


def test_a_message_of_very_many_blanks_is_read_at_once(make_launch):
    raised = error(f"table:{' ' * 300_000}+ end", kind="ValueError")

    assert named(failure(make_launch, ended(), raised)) == (None, False)


def test_what_would_come_again_is_named_though_more_was_written_after_it(make_launch):
    lines = ["train.py: error: unrecognized arguments: --x", *STEPS]

    assert named(failure(make_launch, ended(2), None, *lines)) == ("wrong argument", False)


@pytest.mark.parametrize("failed", [SYS_EXIT, None])
def test_loss_that_a_rank_gives_up_for_is_named(make_launch, failed):
    lines = [*STEPS, "Loss is nan, stopping training"]

    assert named(failure(make_launch, ended(1), failed, *lines)) == ("NaN or infinite loss", False)


@pytest.mark.parametrize(
    "early",
    [
        ["could not raise priority: Operation not permitted (ignored)"],
        ["fused optimizer not used: No module named 'apex'"],
        NO_APEX,
    ],
)
@pytest.mark.parametrize(
    ("last", "rule"),
    [
        (
            [
                "terminate called after throwing an instance of 'c10::DistBackendError'",
                f"  what():  {WATCHDOG}",
                "Exception raised from checkTimeout at ProcessGroupNCCL.cpp:632 (most recent call f"
                "irst):",
                *[f"frame #{i}: c10::Error::Error() + 0x57 (0x7f in libc10.so)" for i in range(9)],
            ],
            "collective timed out",
        ),
        (
            [f"[rank0]:[E1121 14:12:13 ProcessGroupNCCL.cpp:632] {WATCHDOG}", *STEPS],
            "collective ti",
        ),
        (["double free or corruption (out)"], "aborted"),
    ],
)
def test_what_a_rank_said_as_it_aborted_goes_before_earlier_lines(make_launch, early, last, rule):
    found = failure(make_launch, ended(-6), None, *early, *STEPS, *last, *DUMP)

    name, restart = named(found)
    assert name is not None
    assert name.startswith(rule)
    assert restart


def test_a_signal_without_a_rule_is_not_refused_a_restart_for_an_earlier_line(make_launch):
    early = "fused optimizer not used: No module named 'apex'"

    assert named(failure(make_launch, ended(-50), None, early, *STEPS)) == (None, True)


@pytest.mark.parametrize(
    "early",
    [
        ["fused optimizer not used: No module named 'apex'"],
        NO_APEX,
        [*TRACEBACK, "ConnectionResetError: [Errno 104] Connection reset by peer", "trying again"],
    ],
)
def test_an_exception_without_a_name_is_given_none_of_earlier_lines(make_launch, early):
    lines = [*early, *STEPS, *TRACEBACK, "    train()", "ValueError: bad label 17 in row 3"]

    assert named(failure(make_launch, ended(1), None, *lines)) == (None, False)


def test_the_cause_names_an_exception_that_a_command_ended_with(make_launch):
    chain = [*TRACEBACK, "MemoryError", *CAUSE, *TRACEBACK, "RuntimeError: no batch"]

    assert named(failure(make_launch, ended(1), None, *chain)) == ("out of memory", False)


@pytest.mark.parametrize(
    "after",
    [
        [
            *TRACEBACK,
            "subprocess.CalledProcessError: Command '['x']' returned non-zero exit status 1.",
        ],
        ["Exception ignored in: <function Pool.__del__ at 0x7f>", *TRACEBACK, "TypeError: closed"],
    ],
)
def test_what_follows_from_the_exception_of_a_rank_does_not_hide_it(make_launch, after):
    found = failure(make_launch, ended(1), None, *NO_APEX, *after)

    assert named(found) == ("module not found", False)


def train_without_apex() -> None:
    try:
        importlib.import_module("apex_fused")
    except ImportError:
        raise ValueError("bad label 17 in row 3")  # noqa: B904 - as scripts do it


def in_a_worker() -> None:
    """Raise as a DataLoader does: with the traceback of its worker in the message."""
    try:
        train_without_apex()
    except ValueError:
        told = traceback.format_exc()
    raise ValueError(f"Caught ValueError in DataLoader worker process 0.\nOriginal {told}")


def from_a_worker() -> None:
    try:
        in_a_worker()
    except ValueError as error:
        raise RuntimeError("no batch") from error


def after_a_worker() -> None:
    lines = "\n".join(["Caught ConnectionResetError in DataLoader worker process 0.", *NO_APEX])
    try:
        lost(lines.replace("Traceback", "Original Traceback"))
    except ConnectionResetError:
        train_without_apex()


def in_a_group() -> None:
    try:
        train_without_apex()
    except ValueError as error:
        raise ExceptionGroup("unhandled errors in a TaskGroup", [error]) from None


def after_a_group() -> None:
    try:
        lost_in_nested_groups()
    except ExceptionGroup:
        raise ValueError("bad label 17 in row 3")  # noqa: B904 - as scripts do it


@pytest.mark.parametrize(
    "script",
    [
        train_without_apex,
        in_a_worker,
        from_a_worker,
        after_a_worker,
        in_a_group,
        after_a_group,
    ],
)
def test_an_exception_in_whose_handling_another_one_was_raised_names_nothing(make_launch, script):
    assert named(failure_of_raised(make_launch, script)) == (None, False)


@pytest.mark.parametrize("prefix", ["", "[rank1]: "])
def test_nor_does_it_in_the_log_of_a_command(make_launch, prefix):
    chain = [*NO_APEX, *CONTEXT, *TRACEBACK, "ValueError: bad label 17 in row 3"]

    found = failure(make_launch, ended(1), None, *[prefix + line for line in chain], *STEPS)

    assert named(found) == (None, False)


def test_what_another_rank_prints_into_a_traceback_is_no_part_of_it(make_launch):
    chain = [*NO_APEX, *CONTEXT, *TRACEBACK, "ValueError: bad label 17 in row 3"]
    lines = [f"[rank1]: {line}" for line in chain]
    lines.insert(3, "[rank0]: MemoryError")

    found = failure(make_launch, ended(1), None, *lines, *STEPS)

    assert named(found) == ("out of memory", False)


def raise_from(error: Exception) -> None:
    try:
        try:
            raise error
        except type(error) as caught:
            raise RuntimeError("no batch") from caught
    except RuntimeError as caught:
        raise ValueError("no training") from caught


@pytest.mark.parametrize(
    ("cause", "rule", "restart"),
    [
        (FileNotFoundError(2, "No such file or directory"), "file not found", False),
        (ConnectionResetError(104, "Connection reset by peer"), "connection lost", True),
    ],
)
def test_a_cause_that_the_script_names_gives_the_name(make_launch, cause, rule, restart):
    found = failure_of_raised(make_launch, lambda: raise_from(cause))

    assert named(found) == (rule, restart)


def test_the_cause_of_what_was_raised_counts_and_that_of_its_context_does_not(make_launch):
    trace = [
        *[*TRACEBACK, "MemoryError", *CAUSE, *TRACEBACK, "RuntimeError: no batch", *CONTEXT],
        *[*TRACEBACK, "BrokenPipeError", *CAUSE, *TRACEBACK, "ValueError: no training"],
    ]
    record = error("no training", traceback="\n".join(trace))

    assert named(failure(make_launch, ended(), record)) == ("connection lost", True)


def lost(message: str = "Connection reset by peer") -> None:
    raise ConnectionResetError(104, message)


def lost_in_a_group() -> None:
    raise ExceptionGroup("errors in a TaskGroup", [ConnectionResetError(104, "Connection reset")])


def lost_in_nested_groups() -> None:
    try:
        lost()
    except ConnectionResetError as error:
        inner = ExceptionGroup("inner", [error])
    raise ExceptionGroup("errors in a TaskGroup", [inner])


@pytest.mark.parametrize("script", [lost_in_a_group, lost_in_nested_groups])
def test_a_group_with_one_error_is_named_as_that_alone(make_launch, script):
    assert named(failure_of_raised(make_launch, script)) == ("connection lost", True)


@pytest.mark.parametrize(
    ("place", "rule"),
    [
        ("/lib/python3.11/multiprocessing/connection.py", None),
        ("/lib/site-packages/torch/_weights_only_unpickler.py", "damaged file"),
    ],
)
def test_an_end_of_file_without_words_is_told_by_the_place_that_raised_it(make_launch, place, rule):
    trace = f'{TRACEBACK[0]}\n  File "{place}", line 399, in load\n    raise EOFError\nEOFError\n'
    record = error("", kind="EOFError", traceback=trace)

    assert named(failure(make_launch, ended(), record)) == (rule, False)


def test_an_empty_pickle_is_a_damaged_file(make_launch):
    found = failure_of_raised(make_launch, lambda: pickle.load(io.BytesIO()))

    assert named(found) == ("damaged file", False)
