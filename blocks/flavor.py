"""The flavors of a platform as Prefect blocks, where people see and price them in the UI.

They are what ``flavors.yaml`` is to a folder; what they mean is decided by
`trainjob.flavor_catalogue`.
"""

import hashlib
import re
from collections.abc import Container, Mapping
from typing import Any

from prefect.blocks.core import Block
from pydantic import ConfigDict

from trainjob.flavors import Flavor


class FlavorBlock(Block):
    """A kind of machine that the platform offers. Jobs name it as `flavor` of their resources."""

    _block_type_name = "Flavor"
    _block_type_slug = "flavor"

    model_config = ConfigDict(use_attribute_docstrings=True)

    size: str
    """Cores and GiB of memory, and its cards if it has any, such as `2c4g` or `8C40G V100*1`."""

    called: str | None = None
    """What jobs call it, such as `lab-a100`; absent: its size."""

    disk_gib: int | None = None
    """Size in GiB of the disk for data and runs; absent: not said."""

    price_per_hour: float | None = None
    """What one machine costs an hour, in the currency of the platform; absent: not said."""

    pool: str | None = None
    """The deployment, and pool, whose workers have such machines; absent: that of the device."""


def flavor_line(data: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the line of a catalogue that a block is: what jobs call the flavor, and the rest."""
    said = {name: value for name, value in data.items() if value not in (None, "")}
    called = said.pop("called", None) or said.get("size", "")
    return str(called), said


def flavor_values(flavor: Flavor) -> dict[str, Any]:
    """Return the values of the block that a flavor becomes."""
    return {
        "size": flavor.size,
        "called": flavor.name,
        "disk_gib": flavor.disk_gib,
        "price_per_hour": flavor.price_per_hour,
        "pool": flavor.pool,
    }


def block_name(called: str, taken: Container[str]) -> str:
    """Return a name that a block can have for what jobs call a flavor, which may be any text."""
    name = re.sub("[^a-z0-9]+", "-", called.lower()).strip("-") or "flavor"
    return f"{name}-{hashlib.sha256(called.encode()).hexdigest()[:8]}" if name in taken else name
