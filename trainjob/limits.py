"""The limits of a job: when a run is stopped, and when it is started again."""

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from trainjob.spec import Line, Spec
from trainjob.values import DURATION_SCHEMA, format_duration, parse_duration

Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(DURATION_SCHEMA),
]
"""A length of time, written with its unit."""


def _limited(value: timedelta) -> timedelta:
    if not timedelta(0) < value <= timedelta(hours=72):
        raise ValueError("write a duration above 0s and at most 72h")
    return value


def _off_as_none(value: Any) -> Any:
    return None if value == "off" or value is False else value  # YAML 1.1 makes `off` False


LimitedDuration = Annotated[Duration, AfterValidator(_limited)]
_DURATION_OR_OFF = DURATION_SCHEMA | {
    "pattern": f"{DURATION_SCHEMA['pattern']}|^off$",
    "title": "Duration",
}
OptionalDuration = Annotated[
    LimitedDuration | None,
    BeforeValidator(_off_as_none),
    WithJsonSchema({"anyOf": [_DURATION_OR_OFF, {"type": "null", "title": "Off"}]}),
]


class Target(Spec):
    """A value of a metric that is good enough to stop."""

    metric: Line
    """The metric, as the script reports it, `metrics` names it or TensorBoard tags it."""

    at_least: float | None = None
    """Stop when the metric is this or more."""

    at_most: float | None = None
    """Stop when the metric is this or less."""

    def is_reached(self, value: float) -> bool:
        """Tell whether a value of the metric is good enough."""
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most


class Limits(Spec):
    """When a run is stopped, and when it is started again."""

    auto_stop: OptionalDuration = None
    """Stop the training after this long, such as `1h`, `2h`, `4h`, `6h` or `90m`, and upload what
    is there; at most `72h`; `off`: never."""

    budget: float | None = Field(default=None, ge=0)
    """What the training may cost at most, in the currency of the platform's flavors. A job whose
    flavor costs more until `auto_stop` and `grace` are over is refused, and so is one of which that
    cannot be told: without `auto_stop`, or of a flavor without a price."""

    target: Target | None = None
    """Stop the training when a metric has reached a value, and upload what is there."""

    stall: OptionalDuration = None
    """Stop the training when for this long there was no step, no metric, no line of output, no new
    byte in outputs and checkpoints, and no computing; at most `72h`; `off`: never."""

    auto_restart: int = Field(default=0, ge=0, le=10)
    """How often a failed training is started again from its last complete checkpoint, at most 10
    times."""

    restart_on: Literal["infrastructure", "any"] = "infrastructure"
    """What is worth another try: what the machine did to the training (killed rank, hang, network,
    lost process), or any failure, an exception of the script included."""

    # The schema would write the default in ISO 8601, which the form would send back to us.
    grace: LimitedDuration = Field(timedelta(seconds=60), json_schema_extra={"default": "1m"})
    """How long the ranks may take to leave after a stop request before they are killed, at most
    `72h`. If they listen (`should_stop`), they have two thirds of it until SIGTERM, otherwise they
    have SIGTERM at once. After a failure or a stall, the ranks have SIGTERM and at most 10 s."""

    wait_for_cards: OptionalDuration = Field(timedelta(days=1), json_schema_extra={"default": "1d"})
    """How long the run may wait for accelerators that other runs of the machine have, at most
    `72h`; `off`: until they are free."""
