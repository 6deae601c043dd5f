"""Passes while a training runs: a store that misbehaves never hurts it, and nothing is hidden."""

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.core.storage.conftest import LocalPlace
from tests.s3_faults import FaultProxy, fault_proxy
from tests.waiting import PATIENCE_S, wait_until
from trainjob.errors import CheckpointsOfAnother, StoreDenied, StoreError, StoreUnavailable
from trainjob.events import Event, Synced, listening
from trainjob.storage.checkpoint_claim import OWNER
from trainjob.storage.checkpoint_mirror import CheckpointMirror
from trainjob.storage.checkpoint_restore import restore_checkpoints
from trainjob.storage.deadline import Deadline, ending_at
from trainjob.storage.local_tree import list_folder
from trainjob.storage.log_mirror import LogMirror
from trainjob.storage.meter import Meter
from trainjob.storage.output_mirror import OutputMirror
from trainjob.storage.store import open_store
from trainjob.storage.sync import Mirror, SyncReport
from trainjob.storage.sync_thread import flush, pause_s, syncing

QUICK: dict[str, Any] = {"interval_s": 0.02, "settle_s": 0.01}


def checkpoints(folder: Path, place, run_id="run-1", settings=None) -> CheckpointMirror:
    return CheckpointMirror(
        folder, place.url, settings or place.settings, job="digits", run_id=run_id
    )


class Network:
    """A way to the store that a test can cut."""

    def __init__(self) -> None:
        self.fault: str | None = None
        self.proxy: FaultProxy

    def rule(self, method: str, path: str):
        return self.fault


@pytest.fixture
def network(s3) -> Iterator[Network]:
    network = Network()
    with fault_proxy(s3.port, network.rule) as network.proxy:
        yield network


@pytest.fixture
def mirror(folder, s3, s3_place, network) -> CheckpointMirror:
    settings = replace(s3.settings, endpoint_url=network.proxy.endpoint_url)
    return checkpoints(folder, s3_place, settings=settings)


def test_folders_of_every_kind_are_kept_while_the_block_runs(place, tmp_path, write_tree):
    write_tree(tmp_path / "c", {"last.pt": b"1"})
    write_tree(tmp_path / "l", {"attempt-0/rank-0.log": b"started\n"})
    write_tree(tmp_path / "o", {"model.pt": b"weights"})
    mirrors: list[Mirror] = [
        CheckpointMirror(tmp_path / "c", f"{place.url}/c", place.settings, job="j", run_id="r"),
        LogMirror(tmp_path / "l", f"{place.url}/l", place.settings, run_id="r"),
        OutputMirror(tmp_path / "o", f"{place.url}/o", place.settings, run_id="r", label="out"),
    ]

    with syncing(mirrors, **QUICK) as sync:
        wait_until(
            lambda: {"c/last.pt", "l/attempt-0/rank-0.log", "o/model.pt"} <= {*place.paths()}
        )
        write_tree(tmp_path / "l", {"attempt-0/rank-0.log": b"started\nended\n"})
        write_tree(tmp_path / "o", {"end.pt": b"1"})

    assert place.get("l/attempt-0/rank-0.log") == b"started\nended\n"
    assert place.get("o/end.pt") == b"1"
    assert [(r.label, r.num_files, r.missing, r.error) for r in sync.reports] == [
        ("checkpoints", 1, (), None),
        ("logs", 1, (), None),
        ("out", 2, (), None),
    ]


def test_an_outage_is_told_once_and_overcome(mirror, folder, s3_place, network, caplog):
    caplog.set_level(logging.INFO)
    (folder / "a.pt").write_bytes(b"1")

    with syncing([mirror], **QUICK) as sync:
        wait_until(lambda: "a.pt" in s3_place.paths())
        network.fault = "gone"
        (folder / "b.pt").write_bytes(b"1")
        wait_until(lambda: "not saved now" in caplog.text)
        num_requests = len(network.proxy.requests)
        wait_until(lambda: len(network.proxy.requests) > num_requests + 3)
        network.fault = None
        wait_until(lambda: "saved again" in caplog.text)
        wait_until(lambda: "b.pt" in s3_place.paths())

    said = [record for record in caplog.records if record.name.startswith("trainjob.")]
    assert [record.levelname for record in said] == ["WARNING", "INFO"]
    assert "no whole answer from the store" in said[0].getMessage()
    assert sync.reports[0].missing == ()


def test_an_outage_at_the_end_is_waited_for(mirror, folder, s3_place, network):
    with syncing([mirror], **QUICK, flush_s=PATIENCE_S) as sync:
        wait_until(lambda: OWNER in s3_place.paths() or network.proxy.requests)
        network.fault = "gone"
        (folder / "last.pt").write_bytes(b"1")
        mender = threading.Timer(1.0, lambda: setattr(network, "fault", None))
        mender.start()
    mender.join()

    assert (sync.reports[0].num_files, sync.reports[0].missing) == (1, ())


@pytest.mark.parametrize("fault", ["gone", "hang"])
def test_what_could_not_be_saved_in_time_is_named(mirror, folder, network, fault):
    network.fault = fault

    with syncing([mirror], **QUICK, flush_s=1) as sync:
        (folder / "last.pt").write_bytes(b"1")
        wait_until(lambda: network.proxy.requests)
        left = time.monotonic()

    assert time.monotonic() - left < 45
    (report,) = sync.reports
    assert (report.num_files, report.missing) == (0, ("last.pt",))
    assert isinstance(report.error, StoreUnavailable)


def test_a_refusal_is_reported_once_and_the_others_go_on(
    mirror, folder, tmp_path, network, write_tree
):
    network.fault = "403"
    (folder / "a.pt").write_bytes(b"1")
    place = LocalPlace(tmp_path / "logs-kept")
    write_tree(tmp_path / "logs", {"rank-0.log": b"1"})
    logs = LogMirror(tmp_path / "logs", place.url, None, run_id="r")
    told: list[StoreError] = []

    with syncing([mirror, logs], **QUICK, on_problem=told.append) as sync:
        wait_until(lambda: len(network.proxy.requests) > 5 and "rank-0.log" in place.paths())

    assert [type(error) for error in told] == [StoreDenied]
    assert "not allowed to do this" in str(sync.reports[0].error)
    assert [report.missing for report in sync.reports] == [("a.pt",), ()]


def test_rights_that_come_back_are_used(mirror, folder, s3_place, network, caplog):
    caplog.set_level(logging.INFO)
    network.fault = "403"
    (folder / "a.pt").write_bytes(b"1")
    told: list[StoreError] = []

    with syncing([mirror], **QUICK, on_problem=told.append) as sync:
        wait_until(lambda: told)
        network.fault = None
        wait_until(lambda: "saved again" in caplog.text)

    assert sync.reports[0].error is None
    assert "a.pt" in s3_place.paths()


def test_a_folder_that_another_run_takes_over_is_left_alone(place, folder, tmp_path):
    told: list[StoreError] = []
    (folder / "a.pt").write_bytes(b"1")

    with syncing([checkpoints(folder, place)], **QUICK, on_problem=told.append) as sync:
        wait_until(lambda: "a.pt" in place.paths())
        restore_checkpoints(
            place.url, tmp_path / "second", place.settings, job="digits", run_id="run-2"
        )
        wait_until(lambda: told)
        (folder / "b.pt").write_bytes(b"1")

    assert [type(error) for error in told] == [CheckpointsOfAnother]
    assert sync.reports[0].error is told[0]
    assert "b.pt" not in place.paths()


def test_every_pass_that_ends_well_is_told(place, folder, tmp_path):
    (folder / "a.pt").write_bytes(b"1")
    (tmp_path / "file").write_bytes(b"in the way")
    good = checkpoints(folder, place)
    url = str(tmp_path / "file" / "place")
    bad = OutputMirror(folder, url, None, run_id="run-1", label="train_url")
    events: list[Event] = []

    with listening(events.append), syncing([good, bad], **QUICK, flush_s=0.1):
        wait_until(lambda: events.count(Synced(good.label)) > 1)

    assert set(events) == {Synced(good.label)}


def test_what_a_process_left_is_finished_by_another_one(place, folder, tmp_path):
    def killed_soon() -> None:
        with syncing([checkpoints(folder, place)], flush_s=0):
            (folder / "last.pt").write_bytes(b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed_soon()

    (report,) = flush([checkpoints(folder, place)], flush_s=PATIENCE_S)

    assert (report.num_files, report.missing, report.error) == (1, (), None)
    assert place.get("last.pt") == b"1"


def test_the_final_pass_is_made_when_the_block_raises(place, folder):
    def stopped() -> None:
        with syncing([checkpoints(folder, place)], **QUICK):
            (folder / "last.pt").write_bytes(b"1")
            raise SystemExit

    with pytest.raises(SystemExit):
        stopped()

    assert place.get("last.pt") == b"1"


class Broken:
    """A mirror with a mistake."""

    label, url = "broken", "/nowhere/"
    rest_factor: ClassVar[float] = 1.0

    def look(self) -> bool:
        return False

    def push(self, is_final: bool) -> SyncReport:
        raise ZeroDivisionError

    def known(self, error: StoreError | None = None) -> SyncReport:
        return SyncReport(self.label, self.url, 0, 0, ("all",), error=error)


def test_a_mistake_of_ours_ends_neither_the_training_nor_the_other_mirrors(tmp_path, folder):
    place = LocalPlace(tmp_path / "place")
    told: list[StoreError] = []
    (folder / "a.pt").write_bytes(b"1")

    with syncing([Broken(), checkpoints(folder, place)], **QUICK, on_problem=told.append) as sync:
        wait_until(lambda: "a.pt" in place.paths())

    assert [str(error) for error in told] == [
        "/nowhere/: a mistake in trainjob (ZeroDivisionError); see the log, and report it"
    ]
    assert [report.error is None for report in sync.reports] == [False, True]


class Scripted(Broken):
    """A mirror whose passes take as long as the test says."""

    rest_factor: ClassVar[float] = 20.0

    def __init__(self, pass_s: float) -> None:
        self.pass_s = pass_s
        self.times: list[float] = []

    def push(self, is_final: bool) -> SyncReport:
        self.times.append(time.monotonic())
        threading.Event().wait(self.pass_s)
        return self.known()


class Unhindered(Scripted):
    """A mirror that comes again however long its passes take on a busy machine."""

    rest_factor: ClassVar[float] = 0.0


def test_slow_passes_are_followed_by_long_pauses():
    quick, slow = Unhindered(0.0), Scripted(0.05)

    with syncing([quick, slow], **QUICK):
        wait_until(lambda: len(slow.times) == 2)
    during = [moment for moment in quick.times if moment < slow.times[1]]

    assert slow.times[1] - slow.times[0] >= 0.05 * 21
    assert len(during) > 5


def test_the_pause_grows_with_the_pass_and_the_first_one_is_short():
    assert pause_s(30, pass_s=0.1, rest_factor=20, num_passes=1) == 5
    assert pause_s(2, pass_s=0.1, rest_factor=20, num_passes=1) == 2
    assert pause_s(30, pass_s=0.1, rest_factor=20, num_passes=2) == 30
    assert pause_s(30, pass_s=3, rest_factor=20, num_passes=2) == 60
    assert pause_s(30, pass_s=3, rest_factor=2, num_passes=9) == 30


def test_no_mirror_is_no_error():
    with syncing([]) as sync:
        pass

    assert sync.reports == []


def test_a_disk_that_vanishes_is_told_and_not_raised(place, folder):
    sync_mirror = checkpoints(folder, place)
    (folder / "a.pt").write_bytes(b"1")
    events: list[Event] = []

    with listening(events.append), syncing([sync_mirror], **QUICK) as sync:
        wait_until(lambda: Synced(sync_mirror.label) in events)
        shutil.rmtree(folder)

    assert (sync.reports[0].num_files, sync.reports[0].error) == (1, None)


def test_a_copy_ends_when_the_time_is_over(place, folder):
    (folder / "a.pt").write_bytes(b"1")
    files = list_folder(folder).files

    with (
        open_store(place.url, place.settings) as store,
        ending_at(Deadline(0)),
        pytest.raises(StoreUnavailable, match="not finished in the time that was left"),
    ):
        store.upload(folder, files, Meter(None, files))

    assert "a.pt" not in place.paths()


def test_a_deadline_can_be_set_while_a_store_does_not_answer(mirror, network):
    network.fault = "hang"
    deadline = Deadline()

    def end() -> None:
        network.proxy.stalled.wait()
        deadline.set(0)

    thread = threading.Thread(target=end)
    thread.start()
    with ending_at(deadline), pytest.raises(StoreUnavailable):
        mirror.push(is_final=False)
    thread.join()


@pytest.mark.parametrize("fault", [None, "hang"])
def test_what_is_handed_over_ends_at_once_without_a_final_pass(
    mirror, folder, s3_place, network, fault
):
    network.fault = fault

    with syncing([mirror], **QUICK) as sync:
        wait_until(lambda: network.proxy.stalled.is_set() or OWNER in s3_place.paths() or not fault)
        sync.abandon()
        (folder / "last.pt").write_bytes(b"1")
        left = time.monotonic()

    assert time.monotonic() - left < 45  # a final pass has 60 s
    assert sync.reports == []
    assert "last.pt" not in s3_place.paths()
