"""How far a training is and how fast it goes, gathered from its events.

For whoever shows it: the terminal and the artifacts in Prefect. Decides nothing.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from trainjob.events import (
    AttemptEnded,
    AttemptStarted,
    Event,
    MetricReported,
    StepReported,
    Synced,
)
from trainjob.values import format_duration

_SAMPLE_S = 1.0
_NUM_SAMPLES = 60
_QUIET_S = 60.0
_MAX_HEADLINE_CHARS = 200


@dataclass
class TrainingStatus:
    """What is known of a training so far. Not thread-safe: its owner has the lock.

    Attributes:
        num_attempts: How often the ranks may be started in all.
        clock: Seconds that only grow.
        step: How many steps are done; None until that is known.
        total: How many there will be, if that was said.
        epoch: The epoch, if that was said.
        attempt: Which start of the ranks this is, counted from 0.
        resumed_from: The step that this attempt went on from.
        failed: How the last attempt that failed did so, in one line; None if none has.
        metrics: The last value of every metric, in the order in which they became known.
        synced_at: When what is saved while the training goes on was in its store last, by label.
    """

    num_attempts: int = 1
    clock: Callable[[], float] = time.monotonic
    step: int | None = None
    total: int | None = None
    epoch: int | None = None
    attempt: int = 0
    resumed_from: int | None = None
    failed: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    synced_at: dict[str, float] = field(default_factory=dict)
    _is_restarting: bool = False
    _script_reports_steps: bool = False
    _last_step_at: float = 0.0
    # Seconds and steps, at least a second apart: slow steps are seen over a longer time.
    _samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_NUM_SAMPLES))

    def note(self, event: Event) -> None:
        """Take in one event; those that say nothing of the training's progress are ignored."""
        match event:
            case StepReported():
                self._script_reports_steps = True
                self.total, self.epoch = event.total, event.epoch
                self._note_step(event.step)
                self.metrics |= event.metrics
            case MetricReported():
                # Event files may count in epochs; the script's own word on its steps is better.
                if event.step is not None and not self._script_reports_steps:
                    self._note_step(event.step)
                self.metrics |= event.metrics
            case AttemptStarted():
                self.attempt, self.resumed_from = event.attempt, event.resumed_from
                self._is_restarting = False
                self._samples.clear()
            case Synced(label=label):
                self.synced_at[label] = self.clock()
            case AttemptEnded(error=Exception() as error):
                self.failed = str(error).partition("\n")[0][:_MAX_HEADLINE_CHARS]
                self._is_restarting = event.will_restart

    @property
    def percent(self) -> float | None:
        """How much is done, 0 to 100; None if the number of steps is not known."""
        if self.step is None or not self.total:
            return None
        return min(100.0, max(0.0, 100.0 * self.step / self.total))

    @property
    def steps_per_s(self) -> float | None:
        """The speed over the last minute, or over the last 60 steps if these took longer."""
        if len(self._samples) < 2:
            return None
        (first_s, first_step), (last_s, last_step) = self._samples[0], self._samples[-1]
        return (last_step - first_step) / (last_s - first_s)

    @property
    def eta(self) -> str | None:
        """The time that is left as text; None if it cannot be known."""
        speed = self.steps_per_s
        if not speed or not self.total or self.step is None or self.step >= self.total:
            return None
        return rough_duration((self.total - self.step) / speed)

    @property
    def attempt_text(self) -> str:
        """Which attempt this is, as ``attempt 2 of 3``."""
        number = self.attempt + 1
        # A retried task counts on, beyond the restarts that the job asks for.
        of_all = f" of {self.num_attempts}" if number <= self.num_attempts else ""
        return f"attempt {number}{of_all}"

    def facts(self, *, is_over: bool = False) -> list[str]:
        """Return what there is to say of the progress, most important first.

        Args:
            is_over: Leave out what only holds while the training goes on.
        """
        facts = []
        if self.step is not None:
            facts.append(f"step {self.step}" + (f" of {self.total}" if self.total else ""))
        if self.eta and not is_over:
            facts.append(f"ETA {self.eta}")
        if self.epoch is not None:
            facts.append(f"epoch {self.epoch}")
        if self.steps_per_s:
            facts.append(_speed_text(self.steps_per_s))
        if self.attempt:
            facts.append(self.attempt_text)
        if self.attempt and self.resumed_from is not None:
            facts.append(f"went on from step {self.resumed_from}")
        if not is_over:
            now = self.clock()
            for label, synced_at in self.synced_at.items():
                facts.append(f"{label} saved {rough_duration(now - synced_at)} ago")
        return facts

    def trouble(self) -> str | None:
        """Return what a person should know of a training that does not go on right now."""
        if self._is_restarting:
            return f"{self.attempt_text} failed and is started again"
        quiet_s = self.clock() - self._last_step_at
        if self.step is not None and quiet_s >= _QUIET_S and self.step != self.total:
            return f"no step for {rough_duration(quiet_s // 60 * 60)}"
        return None

    def _note_step(self, step: int) -> None:
        now = self.clock()
        if self._samples and step < self._samples[-1][1]:
            self._samples.clear()
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE_S:
            self._samples.append((now, step))
        self.step, self._last_step_at = step, now


def rough_duration(seconds: float) -> str:
    """Write a length of time as precisely as a person needs it: ``42s``, ``3m10s``, ``2h5m``."""
    unit_s = 1 if seconds < 3600 else 60
    return format_duration(timedelta(seconds=math.ceil(seconds / unit_s) * unit_s))


def _speed_text(steps_per_s: float) -> str:
    if steps_per_s >= 1:
        return f"{steps_per_s:.3g} steps/s"
    return f"{1 / steps_per_s:.3g} s/step"
