"""Watches for the value of a metric that is good enough to stop (``limits.target``)."""

import math
import threading
from collections.abc import Callable

from trainjob.events import AttemptStarted, Event, MetricReported
from trainjob.limits import Target


class TargetWatch:
    """A listener that calls back once an attempt, when a metric has reached its target.

    Only an attempt that failed is followed by another, which has to reach the target anew.

    Args:
        target: Which metric, and which value of it.
        on_reached: What to do then; called on the thread that found the value.

    Attributes:
        reached: The value by which the attempt reached the target; None until then.
        step: The step of that value, if it is known.
    """

    def __init__(self, target: Target, on_reached: Callable[[], None]) -> None:
        self.reached: float | None = None
        self.step: int | None = None
        self._target = target
        self._on_reached = on_reached
        self._lock = threading.Lock()
        self._names: dict[str, None] = {}  # in the order in which they were first said

    def __call__(self, event: Event) -> None:
        """Look at an event of the run; safe to call from several threads."""
        if isinstance(event, AttemptStarted):
            with self._lock:
                self.reached = self.step = None
        elif isinstance(event, MetricReported):
            self._look_at(event)

    def problem(self) -> str | None:
        """Return why the target could not be reached: its metric was never reported."""
        with self._lock:
            names = list(self._names)
        if self._target.metric in names:
            return None
        found = ", ".join(names) if names else "no metric at all"
        return f"target metric {self._target.metric!r} was never reported; reported were: {found}"

    def _look_at(self, event: MetricReported) -> None:
        value = event.metrics.get(self._target.metric, math.nan)
        with self._lock:
            self._names |= dict.fromkeys(event.metrics)
            # An infinite value is that of a training that went astray.
            is_good = math.isfinite(value) and self._target.is_reached(value)
            if not is_good or self.reached is not None:
                return
            self.reached, self.step = value, event.step
        self._on_reached()
