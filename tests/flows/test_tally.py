"""What the next process of a run has to know of this one."""

from flows.tally import ATTEMPTS_LABEL, RESTARTS_LABEL, TRAINED_LABEL, Tally, earlier_of
from tests.clock import Clock
from trainjob.attempts import Earlier
from trainjob.events import AttemptEnded, AttemptStarted, RankOutput


def ended(number: int, seconds: float, *, will_restart: bool = True) -> AttemptEnded:
    return AttemptEnded(number, seconds, None, None, will_restart, "")


def test_restarts_attempts_and_time_are_counted_on() -> None:
    tally = Tally(Earlier(num_processes=1, num_attempts=4, num_restarts=1, trained_s=100))

    for event in (AttemptStarted(5, 10), ended(5, 7.6), AttemptStarted(6, 20)):
        tally.note(event)

    assert tally.labels() == {RESTARTS_LABEL: 2, ATTEMPTS_LABEL: 7, TRAINED_LABEL: 108}


def test_only_what_counts_is_worth_a_word() -> None:
    tally = Tally(Earlier())

    tally.note(RankOutput(0, ("a line",)))

    assert not tally.changed.is_set()
    tally.note(AttemptStarted(0, None))
    assert tally.changed.is_set()


def test_a_process_that_follows_a_killed_one_takes_all_over() -> None:
    labels: dict[str, object] = dict(Tally(Earlier(1, 4, 2, 90)).labels())

    assert earlier_of(labels, num_processes=2, is_redelivered=True) == Earlier(2, 4, 3, 90)


def test_a_person_who_retries_a_run_gives_it_all_restarts_and_all_time_again() -> None:
    labels: dict[str, object] = dict(Tally(Earlier(1, 4, 2, 90)).labels())

    assert earlier_of(labels, num_processes=2, is_redelivered=False) == Earlier(2, 4)


def test_an_attempt_that_goes_on_counts_by_two_minutes() -> None:
    clock = Clock()
    tally = Tally(Earlier(), clock)
    tally.note(AttemptStarted(0, None))

    clock.now = 119
    before = tally.labels()[TRAINED_LABEL]
    clock.now = 305

    assert (before, tally.labels()[TRAINED_LABEL]) == (0, 240)
