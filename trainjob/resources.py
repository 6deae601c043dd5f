"""What a job needs of a machine, and what its algorithm can use of one. Part of the job model."""

from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from trainjob.flavors import Flavor
from trainjob.launch.launch import Device
from trainjob.spec import Spec


def _or_text(schema: dict[str, Any]) -> None:
    """Let the schema take the text of a flavor, which is what people write."""
    text = {"type": "string", "title": "Name or size", "examples": ["2c4g", "8C40G V100*1"]}
    schema["anyOf"].insert(0, text)


class Resources(Spec):
    """What the job needs of a machine."""

    device: Device = "cpu"
    """Kind of device the ranks compute on; absent: that of the flavor's cards, else cpu. With cpu,
    accelerators are hidden from the script."""

    flavor: Flavor | None = Field(default=None, json_schema_extra=_or_text)
    """Kind of machine: its size, such as `2c4g` (2 cores and 4 GiB) or `8C40G V100*1` (and a card),
    or the name of one that the platform has, see `python -m flows flavor list`. A smaller machine
    is refused; on a bigger one the ranks together get these cores, shared out as threads, and this
    memory, and are ended when they take more. Absent: all cores and memory of the machine."""

    nodes: Literal[1] = 1
    """Number of machines; only 1 so far."""

    processes_per_node: int = Field(default=1, ge=1, le=1024)
    """Number of ranks on the machine."""

    @property
    def num_cards(self) -> int:
        """Number of accelerators on each machine: those of the flavor, or one a rank."""
        if self.device == "cpu":
            return 0
        of_flavor = self.flavor.cards if self.flavor else 0
        return max(of_flavor, self.processes_per_node)

    @model_validator(mode="before")
    @classmethod
    def _device_of_cards(cls, data: Any) -> Any:
        """Let the cards of a flavor say the device where the job does not."""
        if not isinstance(data, dict) or "device" in data:
            return data
        with suppress(ValueError):  # a wrong flavor is told by its own field
            device = Flavor.model_validate(data.get("flavor")).device
            return data if device is None else {**data, "device": device}
        return data


def _not_empty(devices: tuple[Device, ...]) -> tuple[Device, ...]:
    if not devices:
        raise ValueError("write at least one of cpu, cuda and npu")
    return devices


class Constraints(Spec):
    """What an algorithm can use; a job that asks for more is refused."""

    devices: Annotated[tuple[Device, ...], AfterValidator(_not_empty)] = ("cpu", "cuda", "npu")
    """Kinds of device it computes on."""

    multi_card: bool = True
    """Whether it can use several cards, or ranks, of a machine."""

    distributed: bool = True
    """Whether it can use several machines."""

    auto_search: bool = False
    """Whether its hyperparameters may be searched for. So far this is kept and shown."""

    def allow(self, flavor: Flavor) -> bool:
        """Tell whether the algorithm can use machines of this flavor, all cards of them."""
        is_its_device = (flavor.device or "cpu") in self.devices
        return is_its_device and (self.multi_card or flavor.cards <= 1)
