"""The process is told a second time to end, while the final pass of its mirrors goes on."""

import signal
import threading
from typing import ClassVar

import pytest

from tests.interruptions import Stop, runs
from tests.waiting import wait_until
from trainjob.errors import StoreError, StoreUnavailable
from trainjob.storage.deadline import check_deadline
from trainjob.storage.sync import SyncReport
from trainjob.storage.sync_thread import syncing


class StoppedInFinalPass:
    """A mirror in whose final pass, which goes on for the time that there is, a signal comes."""

    label, url = "stopped", "/nowhere/"
    rest_factor: ClassVar[float] = 1.0

    def __init__(self) -> None:
        self.is_in_final_pass = False

    def look(self) -> bool:
        return False

    def push(self, is_final: bool) -> SyncReport:
        if not is_final:
            return self.known()
        self.is_in_final_pass = True
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        try:
            while True:
                check_deadline(self.url)
                threading.Event().wait(0.01)
        except StoreUnavailable:
            threading.Event().wait(0.2)  # for the answer to what is under way
            self.is_in_final_pass = False
            raise

    def known(self, error: StoreError | None = None) -> SyncReport:
        return SyncReport(self.label, self.url, 0, 0, ("all",), error=error)


def test_an_interrupted_final_pass_is_over_before_anybody_else_makes_one():
    def stop(*_: object) -> None:
        raise Stop

    mirror = StoppedInFinalPass()
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(Stop), syncing([mirror], interval_s=0.02, settle_s=0.01):
            pass
        is_over = not mirror.is_in_final_pass
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert is_over
    wait_until(lambda: not runs("sync"))
