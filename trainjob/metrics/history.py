"""The curves of all metrics over the attempts of a run, in bounded memory.

A restarted training repeats steps. What an earlier attempt said of them is kept as lost: it is
shown as such, and counts for nothing.
"""

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from trainjob.metrics.reading import Reading

_MAX_POINTS = 1000  # of a curve; a plot has no more pixels
_MAX_METRICS = 500


@dataclass(frozen=True, slots=True)
class Point:
    """A value of a metric at a step."""

    step: int
    value: float


class Curve:
    """The values of one metric in one attempt, evenly thinned when they become many.

    Attributes:
        attempt: The attempt, counted from 0.
        is_counted: Whether the steps only count the values, since nobody ever said a step.
        last: The latest value.
        lost_from: Values from this step on are lost, since a later attempt began before them.
    """

    def __init__(self, attempt: int, first: Point, *, is_counted: bool) -> None:
        self.attempt = attempt
        self.is_counted = is_counted
        self.lost_from = math.inf
        self.last = first
        self._steps = array("q")
        self._values = array("d")
        self._every = 1  # of so many values one is kept
        self._count = 0
        self._lowest: Point | None = None
        self._highest: Point | None = None
        self.add(first)

    def add(self, point: Point) -> None:
        """Add the next value."""
        if self._count % self._every == 0:
            self._steps.append(point.step)
            self._values.append(point.value)
        self._count += 1
        self.last = point
        self._note_extremes(point)
        if len(self._steps) > _MAX_POINTS:
            self._steps = self._steps[::2]
            self._values = self._values[::2]
            self._every *= 2

    def lose_from(self, step: float) -> None:
        """Count values from this step on as lost."""
        if step >= self.lost_from:
            return
        self.lost_from = step
        exact = [point for point in (self._lowest, self._highest) if point and point.step < step]
        self._lowest = self._highest = None
        for point in (*exact, *self.kept()):
            self._note_extremes(point)

    def kept(self) -> list[Point]:
        """Return the values that count, thinned; the last one is always there."""
        return [point for point in self._points() if point.step < self.lost_from]

    def lost(self) -> list[Point]:
        """Return the values that a restart made void, thinned."""
        return [point for point in self._points() if point.step >= self.lost_from]

    def extremes(self) -> tuple[Point, Point] | None:
        """Return the lowest and the highest finite value that counts.

        They are exact, unless a restart took the exact ones away: then they are those of the
        thinned curve.
        """
        if self._lowest is None or self._highest is None:
            return None
        return self._lowest, self._highest

    def _points(self) -> Iterator[Point]:
        for step, value in zip(self._steps, self._values, strict=True):
            yield Point(step, value)
        if (self._count - 1) % self._every:
            yield self.last

    def _note_extremes(self, point: Point) -> None:
        if not math.isfinite(point.value):
            return
        if self._lowest is None or point.value < self._lowest.value:
            self._lowest = point
        if self._highest is None or point.value > self._highest.value:
            self._highest = point


@dataclass
class MetricHistory:
    """All curves of a run. Of more than 500 metrics, the first 500 said are kept.

    Attributes:
        curves: By metric, in the order in which they were first said; one curve an attempt.
        resumed_from: By attempt, the step that it went on from; None if not known.
    """

    curves: dict[str, list[Curve]] = field(default_factory=dict)
    resumed_from: dict[int, int | None] = field(default_factory=dict)

    def start_attempt(self, attempt: int, resumed_from: int | None) -> None:
        """Begin an attempt; what came after the step it goes on from is lost.

        Args:
            attempt: Which attempt, counted from 0.
            resumed_from: The step that it goes on from; None: not known, so that only steps which
                are said again make earlier ones void.
        """
        self.resumed_from[attempt] = resumed_from
        if resumed_from is None:
            return
        for curves in self.curves.values():
            for curve in curves:
                if not curve.is_counted:
                    curve.lose_from(resumed_from + 1)

    def add(self, reading: Reading) -> None:
        """Add what was said; without a step it has no place on a curve."""
        if reading.step is None:
            return
        self.resumed_from.setdefault(reading.attempt, None)
        for name, value in reading.values.items():
            self._add(name, Point(reading.step, value), reading)

    def _add(self, name: str, point: Point, reading: Reading) -> None:
        curves = self.curves.get(name)
        if curves is None:
            if len(self.curves) == _MAX_METRICS:
                return
            curves = self.curves[name] = []
        if curves and curves[-1].attempt == reading.attempt:
            curves[-1].add(point)
            curves[-1].is_counted &= reading.is_counted
            return
        for earlier in curves:
            earlier.lose_from(point.step)
        curves.append(Curve(reading.attempt, point, is_counted=reading.is_counted))
