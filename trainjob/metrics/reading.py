"""A reading: metrics that were said together, and the line that keeps it in ``metrics.jsonl``."""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

Source = Literal["report", "regex", "tensorboard"]


@dataclass(frozen=True, slots=True)
class Reading:
    """Metrics that were said together.

    Attributes:
        time_s: When, as seconds since 1970.
        attempt: In which attempt of the run, counted from 0.
        step: The step they belong to; None if that cannot be known.
        values: The metrics by name; nan and infinite ones too.
        source: How they became known.
        epoch: The epoch, if it was said.
        is_counted: Whether `step` only counts the readings, since nobody said a step.
    """

    time_s: float
    attempt: int
    step: int | None
    values: dict[str, float]
    source: Source
    epoch: int | None = None
    is_counted: bool = False

    def to_line(self) -> bytes:
        """Return the reading as one line of JSON with its line end.

        JSON has no nan: it is written as the text ``"NaN"``, the infinite ones as ``"Infinity"``
        and ``"-Infinity"``, as https://protobuf.dev/programming-guides/json does.
        """
        time = datetime.fromtimestamp(self.time_s, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "attempt": self.attempt, "step": self.step}
        if self.epoch is not None:
            line["epoch"] = self.epoch
        if self.is_counted:
            line["counted"] = True
        line["source"] = self.source
        line["metrics"] = {name: _plain(value) for name, value in self.values.items()}
        return json.dumps(line, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Reading":
        """Read such a line.

        Raises:
            ValueError: If it is not one.
        """
        try:
            read = json.loads(line)
            return cls(
                time_s=datetime.fromisoformat(read["time"]).timestamp(),
                attempt=read["attempt"],
                step=read["step"],
                values={name: float(value) for name, value in read["metrics"].items()},
                source=read["source"],
                epoch=read.get("epoch"),
                is_counted=read.get("counted", False),
            )
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"not a line of metrics: {line[:100]!r}") from error


def _plain(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
