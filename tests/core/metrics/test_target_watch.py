import math

import pytest

from trainjob.events import AttemptStarted, MetricReported, StepReported, emit, listening
from trainjob.limits import Target
from trainjob.metrics.target import TargetWatch


@pytest.fixture
def calls() -> list[str]:
    return []


def watch(calls: list[str], **target: float) -> TargetWatch:
    return TargetWatch(Target(metric="acc", **target), lambda: calls.append("reached"))


def say(*values: float, name: str = "acc") -> None:
    for step, value in enumerate(values):
        emit(MetricReported({name: value}, step, "report"))


def test_it_calls_once_at_the_first_value_that_is_good_enough(calls):
    watcher = watch(calls, at_least=0.97)

    with listening(watcher):
        say(0.5, 0.97, 0.99, 0.5, 0.98)

    assert calls == ["reached"]
    assert (watcher.reached, watcher.step) == (0.97, 1)
    assert watcher.problem() is None


def test_every_attempt_reaches_it_anew(calls):
    watcher = watch(calls, at_least=0.97)

    with listening(watcher):
        say(0.98)
        emit(AttemptStarted(1, None))
        between = (watcher.reached, watcher.step)
        say(0.5, 0.99, 0.99)

    assert calls == ["reached"] * 2
    assert between == (None, None)
    assert (watcher.reached, watcher.step) == (0.99, 1)


def test_at_most_is_reached_from_above(calls):
    with listening(watch(calls, at_most=0.1)):
        say(0.5, 0.11)
        before = list(calls)
        say(0.1)

    assert (before, calls) == ([], ["reached"])


@pytest.mark.parametrize("target", [{"at_least": 0.5}, {"at_most": 0.5}])
def test_a_value_that_is_not_finite_never_reaches(calls, target):
    with listening(watch(calls, **target)):
        say(math.nan, math.inf, -math.inf)

    assert calls == []


def test_a_metric_that_was_never_reported_is_a_problem_that_names_the_others(calls):
    watcher = watch(calls, at_least=0.5)

    with listening(watcher):
        emit(MetricReported({"loss": 0.9, "accuracy": 0.9}, 1, "regex"))
        emit(StepReported(0, 1, None, None, {"acc": 0.9}))  # the recorder tells of it

    assert calls == []
    assert watcher.problem() == (
        "target metric 'acc' was never reported; reported were: loss, accuracy"
    )


def test_without_any_metric_the_problem_says_so(calls):
    problem = watch(calls, at_least=0.5).problem()

    assert problem == "target metric 'acc' was never reported; reported were: no metric at all"
