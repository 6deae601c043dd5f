"""Decides whose word counts for a metric, and to which step and attempt it belongs.

A script may say the same metric on every rank, and print, report and write it for TensorBoard at
once: it is taken from who said it first, so that a curve is one curve.
"""

from trainjob.events import StepReported
from trainjob.metrics.event_reader import Scalars
from trainjob.metrics.patterns import Found
from trainjob.metrics.reading import Reading, Source

_MAX_STEP = 2**63 - 1  # what event files can hold


class Attribution:
    """Makes readings of what was found. Used under the lock of the recorder.

    The step of a metric in a line is the one the line names; else the last one that was reported;
    else, if the script never reports steps, the count of its values.
    """

    def __init__(self) -> None:
        self._owners: dict[str, tuple[Source, int]] = {}
        self._counts: dict[str, int] = {}
        self._attempt = 0
        self._last_step: int | None = None
        self._are_steps_reported = False

    def start_attempt(self, attempt: int, resumed_from: int | None) -> None:
        """Begin an attempt, which goes on from a step if that is known."""
        self._attempt = attempt
        self._last_step = resumed_from

    def take_over(self, reading: Reading) -> None:
        """Learn from a reading of an earlier process of this run."""
        if reading.is_counted and reading.step is not None:
            self._counts |= dict.fromkeys(reading.values, reading.step)
        elif reading.source != "tensorboard":
            self._are_steps_reported = True

    def of_line(self, found: Found, rank: int, now_s: float) -> list[Reading]:
        """Return what a line of a rank says."""
        values = self._owned(found.values, "regex", rank)
        if found.step is None and not self._are_steps_reported:
            return self._counted(values, now_s)
        step = self._last_step if found.step is None else found.step
        return self._readings(values, step, "regex", now_s)

    def of_report(self, event: StepReported, now_s: float) -> list[Reading]:
        """Return what the script reported."""
        self._are_steps_reported = True
        self._last_step = event.step
        values = self._owned(event.metrics, "report", event.rank)
        return self._readings(values, event.step, "report", now_s, event.epoch)

    def of_event_file(self, scalars: Scalars, now_s: float) -> list[Reading]:
        """Return what an event file says; its own time is better than now."""
        values = self._owned(scalars.values, "tensorboard", 0)
        time_s = now_s if scalars.time_s is None else scalars.time_s
        return self._readings(values, scalars.step, "tensorboard", time_s)

    def _owned(self, values: dict[str, float], source: Source, rank: int) -> dict[str, float]:
        owner = (source, rank)
        return {
            name: value
            for name, value in values.items()
            if self._owners.setdefault(name, owner) == owner
        }

    def _counted(self, values: dict[str, float], now_s: float) -> list[Reading]:
        by_count: dict[int, dict[str, float]] = {}
        for name, value in values.items():
            count = self._counts[name] = self._counts.get(name, 0) + 1
            by_count.setdefault(count, {})[name] = value
        return [
            Reading(now_s, self._attempt, count, said, "regex", is_counted=True)
            for count, said in by_count.items()
        ]

    def _readings(
        self,
        values: dict[str, float],
        step: int | None,
        source: Source,
        time_s: float,
        epoch: int | None = None,
    ) -> list[Reading]:
        if not values:
            return []
        known = step if step is not None and abs(step) <= _MAX_STEP else None
        return [Reading(time_s, self._attempt, known, values, source, epoch)]
