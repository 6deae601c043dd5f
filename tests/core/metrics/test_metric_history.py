import itertools
import math
import random

import pytest

from trainjob.metrics.history import MetricHistory, Point
from trainjob.metrics.plot import plot
from trainjob.metrics.reading import Reading
from trainjob.metrics.summary import summaries, table_rows


def say(history: MetricHistory, attempt: int, steps: range, name: str = "loss", **also) -> None:
    for step in steps:
        history.add(Reading(0.0, attempt, step, {name: float(step)}, "report", **also))


def kept(history: MetricHistory, name: str = "loss") -> list[int]:
    return [point.step for curve in history.curves[name] for point in curve.kept()]


def lost(history: MetricHistory, name: str = "loss") -> list[int]:
    return [point.step for curve in history.curves[name] for point in curve.lost()]


def test_a_long_run_is_thinned_evenly_and_keeps_its_end_and_extremes():
    history = MetricHistory()
    rng = random.Random(1)
    values = [rng.random() for _ in range(100_000)]
    values[12_345], values[54_321] = -5.0, 7.0

    for step, value in enumerate(values):
        history.add(Reading(0.0, 0, step, {"loss": value}, "report"))

    steps = kept(history)
    assert 500 < len(steps) <= 1002
    assert (steps[0], steps[-1]) == (0, 99_999)
    assert len({b - a for a, b in itertools.pairwise(steps[:-1])}) == 1
    [curve] = history.curves["loss"]
    assert curve.extremes() == (Point(12_345, -5.0), Point(54_321, 7.0))


def test_the_number_of_metrics_is_bounded():
    history = MetricHistory()

    history.add(Reading(0.0, 0, 1, {f"layer-{i}": 0.0 for i in range(5000)}, "tensorboard"))

    assert len(history.curves) == 500


def test_after_a_restart_what_came_after_its_step_is_lost():
    history = MetricHistory()
    say(history, 0, range(1, 11))

    history.start_attempt(1, 4)
    say(history, 1, range(5, 8))

    assert kept(history) == [1, 2, 3, 4, 5, 6, 7]
    assert lost(history) == [5, 6, 7, 8, 9, 10]


def test_what_was_lost_stays_lost_if_the_new_attempt_says_nothing():
    history = MetricHistory()
    say(history, 0, range(1, 11))

    history.start_attempt(1, 4)

    assert kept(history) == [1, 2, 3, 4]


def test_without_a_known_step_what_is_said_again_makes_the_earlier_void():
    history = MetricHistory()
    say(history, 0, range(1, 11))

    history.start_attempt(1, None)
    before = kept(history)
    say(history, 1, range(7, 9))

    assert before == list(range(1, 11))
    assert kept(history) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_counted_values_are_never_lost_since_their_count_is_no_step():
    history = MetricHistory()
    say(history, 0, range(1, 11), is_counted=True)

    history.start_attempt(1, 4)

    assert kept(history) == list(range(1, 11))


def test_extremes_that_a_restart_took_away_do_not_count():
    history = MetricHistory()
    say(history, 0, range(1, 11))

    history.start_attempt(1, 4)

    [summary] = summaries(history)
    assert (summary.last, summary.last_step) == (4.0, 4)
    assert (summary.lowest, summary.highest) == (1.0, 4.0)


def test_a_metric_of_which_nothing_is_left_is_not_in_the_summary():
    history = MetricHistory()
    say(history, 0, range(10, 12))

    history.start_attempt(1, 4)

    assert summaries(history) == ()


def test_values_that_are_not_finite_are_last_but_never_best():
    history = MetricHistory()
    for step, value in enumerate((math.inf, 0.5, 0.25, -math.inf, math.nan)):
        history.add(Reading(0.0, 0, step, {"loss": value, "bad": math.nan}, "report"))

    rows = table_rows(summaries(history))

    assert rows == [
        ("loss", "nan", "4", "0.25", "2", "0.5", "1"),
        ("bad", "nan", "4", "-", "-", "-", "-"),
    ]


@pytest.mark.parametrize(
    "names", [["loss"], ["a", "b/c", "$x_1$ \\frac", "学习率\n", "n" * 300, *"defghij"]]
)
def test_any_metrics_can_be_drawn(names):
    history = MetricHistory()
    for attempt, steps in ((0, range(40)), (1, range(20, 30)), (2, range(25, 60))):
        history.start_attempt(attempt, steps[0] - 1 if attempt else None)
        for step in steps:
            value = (1.0, math.nan, math.inf, -1e300, 1e-300)[step % 5]
            history.add(Reading(0.0, attempt, step, dict.fromkeys(names, value), "report"))

    image = plot(history, "a run", max_panels=6)

    assert image.startswith(b"\x89PNG")
    assert len(image) < 150_000
