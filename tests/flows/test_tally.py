"""What the next process of a run has to know of this one."""

from flows.tally import (
    ATTEMPTS_LABEL,
    RESTARTS_LABEL,
    SINCE_LABEL,
    TRAINED_LABEL,
    Tally,
    earlier_of,
)
from tests.clock import Clock
from trainjob.attempts import Earlier
from trainjob.events import AttemptEnded, AttemptStarted, RankOutput


def ended(number: int, seconds: float, *, will_restart: bool = True) -> AttemptEnded:
    return AttemptEnded(number, seconds, None, None, will_restart, "")


def test_restarts_attempts_and_time_are_counted_on() -> None:
    earlier = Earlier(1, num_attempts=4, num_restarts=1, trained_s=100, since_attempt=3)
    tally = Tally(earlier)

    for event in (AttemptStarted(5, 10), ended(5, 7.6), AttemptStarted(6, 20)):
        tally.note(event)

    assert tally.labels() == {
        RESTARTS_LABEL: 2,
        ATTEMPTS_LABEL: 7,
        TRAINED_LABEL: 108,
        SINCE_LABEL: 3,
    }


def test_only_what_counts_is_worth_a_word() -> None:
    tally = Tally(Earlier())

    tally.note(RankOutput(0, ("a line",)))

    assert not tally.changed.is_set()
    tally.note(AttemptStarted(0, None))
    assert tally.changed.is_set()


def test_a_process_that_follows_a_killed_one_takes_all_over() -> None:
    labels: dict[str, object] = dict(Tally(Earlier(1, 4, 2, 90, 1)).labels())

    assert earlier_of(labels, num_processes=2, is_redelivered=True) == Earlier(2, 4, 3, 90, 1)


def test_a_person_who_retries_a_run_gives_it_all_restarts_and_all_time_again() -> None:
    labels: dict[str, object] = dict(Tally(Earlier(1, 4, 2, 90)).labels())

    told = earlier_of(labels, num_processes=2, is_redelivered=False)

    assert told == Earlier(2, 4, since_attempt=4)


def test_a_retry_of_a_person_is_known_to_the_process_that_follows_it_if_it_is_killed() -> None:
    before: dict[str, object] = dict(Tally(Earlier(1, 3, 0, 90)).labels())
    retried = earlier_of(before, num_processes=2, is_redelivered=False)
    labels: dict[str, object] = dict(Tally(retried).labels())

    assert earlier_of(labels, num_processes=3, is_redelivered=True) == Earlier(3, 3, 1, 0, 3)


def test_an_attempt_that_goes_on_counts_by_two_minutes() -> None:
    clock = Clock()
    tally = Tally(Earlier(), clock)
    tally.note(AttemptStarted(0, None))

    clock.now = 119
    before = tally.labels()[TRAINED_LABEL]
    clock.now = 305

    assert (before, tally.labels()[TRAINED_LABEL]) == (0, 240)
