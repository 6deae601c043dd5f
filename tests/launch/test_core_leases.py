"""Small jobs compute on cores of their own, and share where there are too few."""

import fcntl
import os
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.launch.conftest import MakeLaunch
from trainjob.events import Event, Noted, listening
from trainjob.launch import core_leases
from trainjob.launch.core_leases import core_list, leased_cores
from trainjob.launch.launch import CoreLease
from trainjob.launch.training import run_training

USABLE = os.sched_getaffinity(0)
needs_two_cores = pytest.mark.skipif(len(USABLE) < 2, reason="needs two cores")
PRINTS_CORES = "import os; print(sorted(os.sched_getaffinity(0)), flush=True)"


@pytest.fixture(autouse=True)
def claims_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINJOB_CARDS_DIR", str(tmp_path / "claims"))


def leased(stack: ExitStack, count: int, run_id: str) -> CoreLease:
    lease = stack.enter_context(leased_cores(count, run_id=run_id))
    assert lease is not None
    return lease


@needs_two_cores
def test_two_runs_compute_on_different_cores_and_a_third_shares_the_least_used() -> None:
    count = len(USABLE) // 2
    with ExitStack() as stack:
        first = leased(stack, count, "first")
        second = leased(stack, count, "second")
        third = leased(stack, len(USABLE), "third")

    assert set(first.cores).isdisjoint(second.cores)
    assert (first.shared_with, second.shared_with) == ((), ())
    assert set(third.cores) == USABLE
    assert set(third.shared_with) == {"first", "second"}


@needs_two_cores
def test_cores_are_free_again_after_the_run() -> None:
    with ExitStack() as stack:
        leased(stack, len(USABLE), "gone")

    with ExitStack() as stack:
        later = leased(stack, len(USABLE), "later")

    assert later.shared_with == ()


@needs_two_cores
def test_runs_that_cannot_see_one_another_do_not_all_take_the_first_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = set()
    for number in range(20):
        monkeypatch.setenv("TRAINJOB_CARDS_DIR", str(tmp_path / f"container-{number}"))
        with ExitStack() as stack:
            chosen |= {*leased(stack, 1, f"run-{number}").cores}

    assert len(chosen) > 1


def test_a_job_that_names_no_cores_has_them_all() -> None:
    with leased_cores(None, run_id="x") as lease:
        assert lease is None


def test_the_cores_of_a_container_that_has_no_more_are_left_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As after `docker run --cpus 1` on a machine of more cores.
    monkeypatch.setattr(core_leases, "num_cores", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _pid, _cores: None)

    with leased_cores(1, run_id="x") as lease:
        assert lease is None


@needs_two_cores
def test_ranks_compute_on_the_cores_of_their_run_and_nowhere_else(
    make_launch: MakeLaunch,
) -> None:
    with leased_cores(1, run_id="x") as lease:
        assert lease is not None
        launch = make_launch(PRINTS_CORES, cores=1, core_lease=lease)
        run_training(launch)

    assert launch.rank_log(0).read_text() == f"{list(lease.cores)}\n"
    assert os.sched_getaffinity(0) == USABLE


THREADS = {0: 0, 4: 0, 1: 1, 5: 1, 2: 2, 6: 2, 3: 3, 7: 3}
"""Four units of two threads each, numbered as the kernel does."""


@pytest.mark.parametrize("run_id", ["a", "b", "c", "d"])
@pytest.mark.parametrize(
    ("used", "count", "may_get"),
    [
        ([], 1, [{0}, {1}, {2}, {3}]),
        ([0, 1, 2], 1, [{3}]),
        ([0, 1, 2, 3], 1, [{4}, {5}, {6}, {7}]),
        ([], 2, [{0, 4}, {1, 5}, {2, 6}, {3, 7}]),
        ([0, 1], 2, [{2, 6}, {3, 7}]),
        ([0, 1, 2], 3, [{3, 7, 4}]),
        ([0, 1, 2, 3, 4, 5, 6], 2, [{7, 3}, {7, 0}]),
        ([], 8, [set(range(8))]),
    ],
)
def test_runs_share_a_unit_of_the_processor_only_if_no_other_is_free(
    used: list[int], count: int, may_get: list[set[int]], run_id: str
) -> None:
    num_users = {core: used.count(core) for core in THREADS}

    assert set(core_leases._chosen(num_users, THREADS, count, run_id)) in may_get


def test_threads_of_one_unit_are_known_by_what_the_kernel_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for core, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    monkeypatch.setattr(core_leases, "_CPUS", tmp_path)

    assert list(core_leases.units_of({0, 1, 2, 3, 9}).items()) == [
        (0, 0),
        (2, 0),
        (1, 1),
        (3, 1),
        (9, 9),
    ]


@needs_two_cores
@pytest.mark.parametrize("trouble", ["no folder", "locked"])
def test_a_run_that_can_claim_no_cores_trains_without(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_leases, "_PATIENCE_S", 0.2)
    claims = tmp_path / "claims"
    events: list[Event] = []
    with ExitStack() as stack:
        if trouble == "locked":  # as by a process that was stopped meanwhile
            claims.mkdir()
            stopped = os.open(claims, os.O_RDONLY)
            stack.callback(os.close, stopped)
            fcntl.flock(stopped, fcntl.LOCK_EX)
        else:
            claims.write_text("a file")
        stack.enter_context(listening(events.append))

        lease = stack.enter_context(leased_cores(1, run_id="x"))

    assert lease is None
    [note] = [event.text for event in events if isinstance(event, Noted)]
    assert note.startswith("the ranks are not held to 1 of the cores: ")
    assert str(claims) in note


def test_asking_whether_cores_can_be_chosen_chooses_none_for_this_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chose = []
    monkeypatch.setattr(
        os, "sched_setaffinity", lambda _pid, _cores: chose.append(threading.get_native_id())
    )

    core_leases.can_choose_cores(1)

    assert len(chose) == 1
    assert threading.get_native_id() not in chose


@pytest.mark.parametrize(("cores", "text"), [((0,), "0"), ((0, 1, 2, 8), "0-2,8"), ((1, 3), "1,3")])
def test_cores_are_written_as_people_write_them(cores: tuple[int, ...], text: str) -> None:
    assert core_list(cores) == text
