"""What is known of a training, by the events that it was told and a clock in the test's hand."""

import pytest

from tests.clock import Clock
from trainjob.events import AttemptEnded, AttemptStarted, MetricReported, StepReported, Synced
from trainjob.training_status import TrainingStatus, rough_duration


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture
def status(clock: Clock) -> TrainingStatus:
    return TrainingStatus(num_attempts=3, clock=clock)


def step(number: int, total: int | None = 1000, **metrics: float) -> StepReported:
    return StepReported(0, number, total, None, metrics)


def failed(attempt: int, message: str, will_restart: bool = True) -> AttemptEnded:
    return AttemptEnded(attempt, 1.0, None, RuntimeError(message), will_restart, "/logs")


def test_nothing_is_known_before_the_first_word(status: TrainingStatus) -> None:
    assert status.facts() == []
    assert (status.percent, status.steps_per_s, status.eta) == (None, None, None)
    assert status.trouble() is None


def test_speed_and_time_left_are_those_of_the_last_minute(
    status: TrainingStatus, clock: Clock
) -> None:
    for number in range(100):  # one step a second
        status.note(step(number))
        clock.now += 1
    for number in range(100, 700, 10):  # then ten
        status.note(step(number))
        clock.now += 1

    assert status.steps_per_s == pytest.approx(10)
    assert status.eta == "31s"
    assert status.percent == 69.0


def test_how_long_ago_it_was_saved_is_known_while_it_goes_on(
    status: TrainingStatus, clock: Clock
) -> None:
    status.note(step(1))
    status.note(Synced("checkpoints"))
    clock.now += 12

    assert status.facts()[-1] == "checkpoints saved 12s ago"
    assert "saved" not in str(status.facts(is_over=True))


def test_slow_steps_have_a_speed_too(status: TrainingStatus, clock: Clock) -> None:
    for number in range(3):
        status.note(step(number, total=10))
        clock.now += 600

    assert status.facts() == ["step 2 of 10", "ETA 1h20m", "600 s/step"]


def test_many_reports_a_second_are_one_sample(status: TrainingStatus, clock: Clock) -> None:
    for number in range(1000):
        status.note(step(number, total=100_000))
        clock.now += 0.01

    assert status.steps_per_s == pytest.approx(100, rel=0.01)


def test_a_finished_training_has_no_time_left(status: TrainingStatus, clock: Clock) -> None:
    status.note(step(500))
    clock.now += 5
    status.note(step(1000))

    assert status.percent == 100.0
    assert status.facts() == ["step 1000 of 1000", "100 steps/s"]


@pytest.mark.parametrize(
    ("number", "total", "percent"), [(5, 0, None), (5, None, None), (30, 20, 100.0), (-1, 10, 0.0)]
)
def test_a_share_is_within_0_and_100(
    status: TrainingStatus, number: int, total: int | None, percent: float | None
) -> None:
    status.note(step(number, total))

    assert status.percent == percent


def test_a_restart_begins_the_speed_anew_and_keeps_the_metrics(
    status: TrainingStatus, clock: Clock
) -> None:
    for number in range(0, 100, 10):
        status.note(step(number, loss=1.0))
        clock.now += 1

    status.note(failed(0, "rank 1 was killed by SIGKILL\nlast lines"))
    between = status.trouble()
    status.note(AttemptStarted(1, resumed_from=80))
    status.note(step(81))
    clock.now += 2
    status.note(step(82))

    assert between == "attempt 1 of 3 failed and is started again"
    assert status.trouble() is None
    assert status.failed == "rank 1 was killed by SIGKILL"
    assert status.steps_per_s == 0.5
    assert status.facts()[-2:] == ["attempt 2 of 3", "went on from step 80"]
    assert status.metrics == {"loss": 1.0}


def test_attempts_beyond_those_asked_for_are_counted_alone(status: TrainingStatus) -> None:
    status.note(AttemptStarted(3, resumed_from=None))

    assert status.attempt_text == "attempt 4"


def test_a_step_back_is_no_speed(status: TrainingStatus, clock: Clock) -> None:
    for number in (50, 60, 5):
        status.note(step(number))
        clock.now += 1

    assert status.steps_per_s is None
    assert status.step == 5


def test_a_training_without_steps_for_a_minute_says_so(
    status: TrainingStatus, clock: Clock
) -> None:
    status.note(step(10))

    clock.now += 59
    assert status.trouble() is None
    clock.now += 131
    assert status.trouble() == "no step for 3m"


def test_the_last_values_of_all_metrics_are_known(status: TrainingStatus) -> None:
    status.note(step(1, loss=0.5))
    status.note(MetricReported({"accuracy": 0.9}, None, "regex"))
    status.note(MetricReported({"loss": 0.25}, 2, "report"))

    assert list(status.metrics.items()) == [("loss", 0.25), ("accuracy", 0.9)]


def test_steps_of_metrics_count_unless_the_script_reports_its_own(status: TrainingStatus) -> None:
    status.note(MetricReported({"loss": 1.0}, 7, "tensorboard"))
    assert status.step == 7

    status.note(step(100))
    status.note(MetricReported({"loss": 1.0}, 8, "tensorboard"))
    assert status.step == 100


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1s"), (61, "1m1s"), (3599.5, "1h"), (7300, "2h2m"), (90_000, "1d1h")],
)
def test_durations_are_as_precise_as_people_need(seconds: float, text: str) -> None:
    assert rough_duration(seconds) == text
