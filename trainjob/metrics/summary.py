"""The metrics of a run as a small table for people: the last value, the best ones, their steps."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainjob.metrics.history import Curve, MetricHistory

TABLE_HEAD = ("metric", "last", "step", "lowest", "step", "highest", "step")


@dataclass(frozen=True, slots=True)
class MetricSummary:
    """What a metric came to. Values that a restart made void do not count.

    Attributes:
        name: What the metric is called.
        last: Its latest value; may be nan or infinite.
        last_step: The step of that value.
        lowest: The lowest finite value; None if there was none.
        lowest_step: The step of that value.
        highest: The highest finite value; None if there was none.
        highest_step: The step of that value.
    """

    name: str
    last: float
    last_step: int
    lowest: float | None = None
    lowest_step: int | None = None
    highest: float | None = None
    highest_step: int | None = None


def summaries(history: MetricHistory) -> tuple[MetricSummary, ...]:
    """Return what every metric came to, in the order in which they were first said."""
    found = (_summary(name, curves) for name, curves in history.curves.items())
    return tuple(summary for summary in found if summary is not None)


def table_rows(metrics: Sequence[MetricSummary]) -> list[tuple[str, ...]]:
    """Return the cells of a table with the head `TABLE_HEAD`, a row a metric."""
    return [
        (
            metric.name,
            format_value(metric.last),
            f"{metric.last_step:,}",
            *_value_and_step(metric.lowest, metric.lowest_step),
            *_value_and_step(metric.highest, metric.highest_step),
        )
        for metric in metrics
    ]


def format_value(value: float) -> str:
    """Write a value with five digits: ``0.97312``, ``1.2e-05``, ``nan``."""
    return f"{value:.5g}"


def _value_and_step(value: float | None, step: int | None) -> tuple[str, str]:
    return ("-", "-") if value is None or step is None else (format_value(value), f"{step:,}")


def _summary(name: str, curves: list[Curve]) -> MetricSummary | None:
    kept = [point for curve in curves for point in curve.kept()[-1:]]
    if not kept:  # the restart took all of it
        return None
    bounds = [extremes for curve in curves if (extremes := curve.extremes()) is not None]
    if not bounds:
        return MetricSummary(name, kept[-1].value, kept[-1].step)
    lowest = min((low for low, _ in bounds), key=lambda point: point.value)
    highest = max((high for _, high in bounds), key=lambda point: point.value)
    return MetricSummary(
        name=name,
        last=kept[-1].value,
        last_step=kept[-1].step,
        lowest=lowest.value,
        lowest_step=lowest.step,
        highest=highest.value,
        highest_step=highest.step,
    )
