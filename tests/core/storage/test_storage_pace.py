"""Which requests are so slow that they are given up."""

import pytest

from tests.clock import Clock
from trainjob.storage.pace import MIN_BYTES_A_S, Pace, Window

WINDOW_S = 60.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    return Pace(clock)


def go_on(pace: Pace, clock: Clock, seconds: int, num_requests: int) -> None:
    for _ in range(seconds):
        clock.now += 1
        pace.go_on(num_requests)


@pytest.mark.parametrize(("bytes_a_s", "is_too_slow"), [(100, True), (MIN_BYTES_A_S, False)])
def test_a_request_alone_has_to_move_a_little(pace, clock, bytes_a_s, is_too_slow):
    window = Window(pace, WINDOW_S)

    go_on(pace, clock, 59, 1)
    early = window.is_too_slow(59 * bytes_a_s)
    go_on(pace, clock, 1, 1)

    assert not early
    assert window.is_too_slow(60 * bytes_a_s) == is_too_slow


def test_what_was_moved_before_the_window_does_not_count(pace, clock):
    window = Window(pace, WINDOW_S)
    go_on(pace, clock, 60, 1)
    first = window.is_too_slow(8 << 20)

    go_on(pace, clock, 60, 1)

    assert not first
    assert window.is_too_slow((8 << 20) + 100)


def test_requests_that_share_a_slow_link_are_not_too_slow(pace, clock):
    """64 of them until the window is nearly over, and then one alone."""
    window = Window(pace, WINDOW_S)

    go_on(pace, clock, 59, 64)
    go_on(pace, clock, 1, 1)

    assert not window.is_too_slow(59 * MIN_BYTES_A_S // 64 + MIN_BYTES_A_S)


def test_the_time_in_which_the_process_was_stopped_does_not_count(pace, clock):
    window = Window(pace, WINDOW_S)
    go_on(pace, clock, 1, 1)

    clock.now += 3600
    pace.go_on(1)

    assert not window.is_too_slow(0)
