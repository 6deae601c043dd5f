"""What a run really took: how long it had its devices, and what its stages cost.

Made at the end of a run from its report; `trainjob.cost` says before what it may cost at most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainjob.cost import amount
from trainjob.job import TrainingJob
from trainjob.launch.launch import Device
from trainjob.values import counted

_TRAIN = "train"


@dataclass(frozen=True, slots=True)
class Spent:
    """What a run took.

    Attributes:
        device: Kind of device that it trained on.
        devices: How many: its cards, or its machines where it needs no cards.
        device_seconds: `devices` x the time that its attempts trained, of all its processes.
        num_unknown: How many attempts died without saying how long they trained; not in here.
        cost: What all stages cost together; None: its flavor has no price.
        by_stage: What each stage cost, by its name; to wait for cards costs nothing.
    """

    device: Device
    devices: int
    device_seconds: float
    num_unknown: int = 0
    cost: float | None = None
    by_stage: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return it as a line for a person."""
        what = "machine" if self.device == "cpu" else f"card of {self.device}"
        plural = "machines" if self.device == "cpu" else f"cards of {self.device}"
        devices = f"1 {what}" if self.devices == 1 else f"{self.devices} {plural}"
        text = f"{self.device_seconds:,.1f} device-seconds of training, on {devices}"
        if self.num_unknown:
            text += f", without {counted(self.num_unknown, 'attempt')} whose time is not known"
        return text if self.cost is None else f"{amount(self.cost)} for {text}"


def spent_by(
    job: TrainingJob,
    stage_seconds: Mapping[str, float],
    attempt_seconds: Sequence[float | None],
) -> Spent:
    """Return what a run took.

    Args:
        job: Its job.
        stage_seconds: How long each stage took in the last process of the run, by its name.
        attempt_seconds: How long each attempt trained, of all processes; None: nobody knows.
    """
    resources = job.resources
    devices = resources.nodes * max(resources.num_cards, 1)
    trained_s = sum(seconds or 0.0 for seconds in attempt_seconds)
    device_seconds, num_unknown = devices * trained_s, attempt_seconds.count(None)
    price = resources.flavor.price_per_hour if resources.flavor else None
    if price is None:
        return Spent(resources.device, devices, device_seconds, num_unknown)
    seconds = dict(stage_seconds)
    if _TRAIN in seconds or attempt_seconds:
        # The attempts of a process that was killed are in no stage, and of the stage it is no
        # training to wait for cards. What an attempt took that does not say so may be in the stage.
        at_least_s = seconds.get(_TRAIN, 0.0) if num_unknown else 0.0
        seconds[_TRAIN] = max(at_least_s, trained_s)
    by_stage = {name: s / 3600 * price * resources.nodes for name, s in seconds.items()}
    total = sum(by_stage.values())
    return Spent(resources.device, devices, device_seconds, num_unknown, total, by_stage)
