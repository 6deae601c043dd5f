"""Ranks that take more memory than their flavor has are ended and named; others go on."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.conftest import MakeLaunch, marked_processes, read_record
from trainjob.events import Event, Noted, listening
from trainjob.launch import evidence
from trainjob.launch.failure import RankFailed
from trainjob.launch.launch import Launch
from trainjob.launch.memory_group import group_place, memory_group
from trainjob.launch.over_memory import OverMemory
from trainjob.launch.training import run_training

MIB = 2**20
LIMIT_BYTES = 200 * MIB
GREEDY = """
    import os, time
    print("loading", flush=True)
    data = b"x" * ((400 if os.environ["RANK"] == "1" else 20) * 2**20)
    time.sleep(60)
"""
SHARING = """
    import os
    data = b"x" * (120 * 2**20)
    started, done = os.pipe(), os.pipe()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            sum(memoryview(data)[::4096])
            os.write(started[1], b".")
            os.read(done[0], 1)
            os._exit(0)
        children.append(child)
    while len(os.read(started[0], 4)) == 0: pass
    import time; time.sleep(1.5)
    os.write(done[1], b"....")
    for child in children: os.waitpid(child, 0)
    print("done", flush=True)
"""
LOADING = """
    import os, signal
    child = os.fork()
    if child == 0:
        data = b"x" * (400 * 2**20)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    raise RuntimeError(f"DataLoader worker (pid {child}) is killed by signal: Killed. ")
"""


def failure_of(launch: Launch) -> RankFailed:
    """Run a launch that takes too much, and return what is said of it."""
    with pytest.raises(RankFailed) as raised:
        run_training(launch)
    assert not marked_processes(launch)
    return raised.value


@pytest.fixture
def cgroup(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a cgroup below which groups with a limit can be made, and name it to the run."""
    parent = evidence._cgroup(Path("/sys/fs/cgroup"))
    if parent is None or not os.access(parent, os.W_OK):
        pytest.skip("needs the right to make a memory cgroup")
    place = parent / f"trainjob-limits-{os.getpid()}"
    place.mkdir()
    monkeypatch.setenv("TRAINJOB_CGROUP", str(place))
    try:
        if group_place(os.environ) is None:
            pytest.skip("needs a cgroup whose memory can be divided")
        yield place
    finally:
        place.rmdir()


@pytest.mark.mpi
def test_the_rank_that_takes_too_much_is_named_and_nothing_is_left(
    make_launch: MakeLaunch,
) -> None:
    launch = make_launch(GREEDY, world_size=2, launcher="mpi", memory_bytes=LIMIT_BYTES)

    failure = failure_of(launch).failure

    assert read_record(launch, "outcome")["reason"] == "memory"
    assert (failure.rank, failure.ended, failure.restart) == (1, "memory", False)
    assert failure.headline.startswith("the ranks took ")
    assert "of memory, and their flavor has 200 MiB: rank 1 " in failure.headline
    assert failure.rule is not None
    assert failure.rule.name == "more memory than the flavor has"
    assert failure.last_lines == ("loading",)


def test_memory_that_processes_share_counts_once(make_launch: MakeLaunch) -> None:
    launch = make_launch(SHARING, memory_bytes=LIMIT_BYTES)

    run_training(launch)

    assert launch.rank_log(0).read_text() == "done\n"


def test_a_cgroup_ends_the_rank_that_takes_too_much(make_launch: MakeLaunch, cgroup: Path) -> None:
    script = 'print("loading", flush=True); data = b"x" * (400 * 2**20)'
    launch = make_launch(script, cores=1, memory_bytes=LIMIT_BYTES)
    events: list[Event] = []

    with listening(events.append):
        failure = failure_of(launch).failure

    assert not list(cgroup.glob("trainjob-*"))
    assert failure.headline == (
        "rank 0 of 1 was killed by SIGKILL (out of memory); the ranks took all 200 MiB that their "
        "flavor has"
    )
    assert (failure.ended, failure.restart) == ("memory", False)
    assert failure.rule is not None
    assert failure.rule.name == "more memory than the flavor has"
    assert failure.evidence[-1].startswith("memory: limit 200 MiB, peak ")
    [note] = [event.text for event in events if isinstance(event, Noted)]
    assert note.endswith("; 200 MiB of memory by a cgroup")


def test_ranks_within_their_memory_end_well_in_a_cgroup(
    make_launch: MakeLaunch, cgroup: Path
) -> None:
    launch = make_launch("print('done', flush=True)", memory_bytes=LIMIT_BYTES)

    run_training(launch)

    assert launch.rank_log(0).read_text() == "done\n"


def test_a_data_worker_that_a_cgroup_ends_is_too_much_memory_too(
    make_launch: MakeLaunch, cgroup: Path
) -> None:
    launch = make_launch(LOADING, memory_bytes=LIMIT_BYTES)

    failure = failure_of(launch).failure

    assert (failure.ended, failure.restart, failure.rank) == ("memory", False, 0)
    assert failure.rule is not None
    assert failure.rule.name == "more memory than the flavor has"
    assert "is killed by signal: Killed" in failure.headline
    assert failure.headline.endswith("; the ranks took all 200 MiB that their flavor has")


def test_a_folder_that_is_no_cgroup_after_all_is_told_and_memory_watched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "cgroup.subtree_control").write_text("memory")

    with memory_group(LIMIT_BYTES, "mine", {"TRAINJOB_CGROUP": str(place)}) as group:
        assert group is None

    assert "no cgroup can be made" in caplog.text
    assert not list(place.glob("trainjob-*"))


def test_the_group_of_another_container_is_not_removed(cgroup: Path) -> None:
    # Its flow process has a number that nobody has here.
    theirs = cgroup / "trainjob-999999999-theirs"
    theirs.mkdir()
    lock = os.open(theirs, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)

    with memory_group(LIMIT_BYTES, "mine"):
        was_left = theirs.exists()
    os.close(lock)
    with memory_group(LIMIT_BYTES, "mine"):
        is_left = theirs.exists()

    assert (was_left, is_left) == (True, False)


def test_a_group_is_locked_as_long_as_its_run_needs_it(cgroup: Path) -> None:
    with (
        memory_group(LIMIT_BYTES, "first") as first,
        memory_group(LIMIT_BYTES, "second") as second,
    ):
        assert first is not None
        assert second is not None
        assert first.exists()


def test_groups_of_flow_processes_that_were_killed_are_removed(cgroup: Path) -> None:
    (cgroup / "trainjob-999999999-lost").mkdir()

    with memory_group(LIMIT_BYTES, "mine"):
        there = [group.name for group in cgroup.glob("trainjob-*")]

    assert there == [f"trainjob-{os.getpid()}-mine"]
    assert not list(cgroup.glob("trainjob-*"))


def test_without_a_cgroup_to_divide_memory_is_watched(
    make_launch: MakeLaunch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINJOB_CGROUP", str(tmp_path))
    launch = make_launch("print('done', flush=True)", cores=1, memory_bytes=LIMIT_BYTES)
    events: list[Event] = []

    with listening(events.append):
        run_training(launch)

    [note] = [event.text for event in events if isinstance(event, Noted)]
    assert note == (
        "limits of the ranks: 1 core, left to the container or the kernel; 200 MiB of memory "
        "watched, since no cgroup may be made here"
    )


@pytest.mark.parametrize(
    ("files", "is_one"),
    [
        ({"cgroup.subtree_control": "cpu memory\n", "cgroup.procs": ""}, True),
        ({"cgroup.subtree_control": "", "cgroup.controllers": "memory", "cgroup.procs": ""}, True),
        ({"cgroup.subtree_control": "", "cgroup.controllers": "cpu", "cgroup.procs": ""}, False),
        (
            {"cgroup.subtree_control": "", "cgroup.controllers": "memory", "cgroup.procs": "7\n"},
            False,
        ),
        ({}, False),
    ],
    ids=["memory-divided", "can-be-divided", "no-memory", "has-processes", "no-cgroup"],
)
def test_a_group_of_version_2_is_divided_only_if_the_kernel_will(
    tmp_path: Path, files: dict[str, str], is_one: bool
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    assert (group_place({"TRAINJOB_CGROUP": str(tmp_path)}) == tmp_path) == is_one


def test_no_group_that_was_not_given_to_us_is_divided() -> None:
    assert group_place({}) is None or os.environ.get("INVOCATION_ID")  # a delegated service


def test_of_many_ranks_those_that_took_most_are_named() -> None:
    over = OverMemory(20 * MIB, 30 * MIB, {rank: rank * MIB for rank in range(8)})

    assert over.most == 7
    assert over.headline == (
        "the ranks took 30 MiB of memory, and their flavor has 20 MiB: rank 7 7 MiB, rank 6 6 MiB, "
        "rank 5 5 MiB, rank 4 4 MiB, 4 more 6 MiB, their launcher 2 MiB"
    )
