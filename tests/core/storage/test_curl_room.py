"""How many requests are under way at one time."""

import pytest

from tests.clock import Clock
from trainjob.storage.curl.room import FIRST_REQUESTS, MAX_REQUESTS, Room


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def room(clock: Clock) -> Room:
    return Room(clock)


def wait(room: Room, clock: Clock, share: float, num_requests: int) -> None:
    """Let a second go by, of which a share was spent waiting."""
    for _ in range(100):
        clock.now += 0.01
        room.note_wait(0.01 * share, num_requests)


def test_a_near_store_is_asked_no_more(room: Room, clock: Clock) -> None:
    wait(room, clock, 0.3, room.limit)

    assert room.limit == FIRST_REQUESTS


def test_a_store_far_away_is_asked_more_until_the_most(room: Room, clock: Clock) -> None:
    for _ in range(10):
        wait(room, clock, 0.9, room.limit)

    assert room.limit == MAX_REQUESTS


def test_no_more_room_is_made_than_is_used(room: Room, clock: Clock) -> None:
    wait(room, clock, 0.9, room.limit - 1)

    assert room.limit == FIRST_REQUESTS


def test_a_store_that_is_asked_too_much_gets_half_once_for_many_answers(
    room: Room, clock: Clock
) -> None:
    for _ in range(50):
        room.note_busy()

    assert room.limit == FIRST_REQUESTS // 2


def test_after_that_it_is_asked_more_slowly(room: Room, clock: Clock) -> None:
    room.note_busy()
    wait(room, clock, 0.9, room.limit)

    assert FIRST_REQUESTS // 2 < room.limit < FIRST_REQUESTS // 2 + 10


def test_something_is_always_asked(room: Room, clock: Clock) -> None:
    for _ in range(20):
        room.note_busy()
        clock.now += 1

    assert room.limit > 0
