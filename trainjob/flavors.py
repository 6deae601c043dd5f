"""A flavor: a kind of machine by its size, its cards and its price.

Products sell machines by texts such as ``8C40G V100*1``. Such a text is read here; flavors that a
platform names and prices are looked up by `trainjob.flavor_catalogue`. Part of the job model.
"""

import re
from typing import Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from trainjob.launch.launch import Device
from trainjob.spec import Line, Spec

HOW_TO_WRITE = (
    "a flavor as cores and GiB of memory, and its cards if it has any, such as 2c4g or 8C40G V100*1"
)
_SIZE = re.compile(
    r"(?P<cores>\d{1,6})\s*c\s*(?P<memory>\d{1,6})\s*g(?:ib)?"
    r"(?:\s+(?P<card>[a-z0-9](?:[\w .-]*[\w.-])?)\s*\*\s*(?P<cards>\d{1,6}))?",
    re.IGNORECASE | re.ASCII,
)
_NPU_CARD = re.compile(
    r"(?<![a-z0-9])(?:ascend|atlas|huawei|npu|snt\d)|^d?[39]10(?!\d)", re.IGNORECASE
)
"""Huawei's names for its cards: Ascend 910B, Atlas 800, Snt9b, D910, 310P. A number alone says it
at the start: others make cards such as NVS 310.
"""


class Flavor(Spec):
    """A kind of machine: its size, its cards, its price."""

    name: Line | None = None
    """What the platform calls it; absent: its size says it all."""

    cores: int = Field(ge=1)
    """Processor cores."""

    memory_gib: int = Field(ge=1)
    """Memory in GiB."""

    card: Line | None = None
    """Kind of accelerator, such as V100 or Ascend 910; absent: it has none."""

    cards: int = Field(default=0, ge=0)
    """Number of accelerators."""

    disk_gib: int | None = Field(default=None, ge=1)
    """Size in GiB of the disk for data and runs; absent: not said."""

    price_per_hour: float | None = Field(default=None, ge=0)
    """What one machine costs an hour, in the currency of the platform; absent: not said."""

    pool: Line | None = None
    """The deployment, with its pool, whose workers have such machines: `submit` gives it the job;
    absent: that of the device."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``2c4g``, ``8C40GiB`` or ``8C40G V100*1``.

        Raises:
            ValueError: If the text is not of that form.
        """
        return cls.model_validate(text)

    @property
    def size(self) -> str:
        """Its size and cards, as `parse` reads them."""
        cards = f" {self.card}*{self.cards}" if self.cards else ""
        return f"{self.cores}c{self.memory_gib}g{cards}"

    @property
    def device(self) -> Device | None:
        """The kind of device that its cards are; None: it has none, and ranks may use any."""
        if self.card is None:
            return None
        return "npu" if _NPU_CARD.search(self.card) else "cuda"

    def __str__(self) -> str:
        """Return how people name it."""
        return f"{self.name} ({self.size})" if self.name else self.size

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return _read_size(value)
        if isinstance(value, dict | Flavor):
            return value
        raise ValueError(f"write {HOW_TO_WRITE}")

    @model_validator(mode="after")
    def _cards_have_a_kind(self) -> Self:
        if (self.card is None) != (self.cards == 0):
            raise ValueError("write card and cards together, such as card: V100 and cards: 1")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, serialize: SerializerFunctionWrapHandler) -> Any:
        """Write text where it says everything, as a job file does."""
        more = (self.name, self.disk_gib, self.price_per_hour, self.pool)
        return serialize(self) if any(said is not None for said in more) else self.size


def _read_size(text: str) -> dict[str, Any]:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"write {HOW_TO_WRITE}")
    values: dict[str, Any] = {"cores": int(match["cores"]), "memory_gib": int(match["memory"])}
    if match["card"]:
        values |= {"card": match["card"], "cards": int(match["cards"])}
    return values
