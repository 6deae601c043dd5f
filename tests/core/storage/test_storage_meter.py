"""How often watchers hear of a copy."""

import pytest

from tests.clock import Clock
from trainjob.events import Event, Transferred, listening
from trainjob.storage import meter
from trainjob.storage.listing import Entry
from trainjob.storage.meter import Meter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter, "monotonic", clock)
    return clock


def test_watchers_hear_of_a_copy_twice_a_second_at_most_and_of_its_end(clock: Clock) -> None:
    told: list[Event] = []
    copy = Meter("data", [Entry("file", 1000, "")])

    with listening(told.append):
        for _ in range(1000):  # 10 s
            clock.now += 0.01
            copy.add_bytes(1)
        copy.finish_file()

    assert 18 <= len(told) - 1 <= 20
    assert told[-1] == Transferred("data", 1, 1, 1000, 1000)
