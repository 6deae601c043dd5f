"""How many accelerators a rank could see here, without importing torch.

Counted by their device files, which is what a driver makes, less what the environment hides.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from trainjob.launch.launch import Device

_FILES = {"cuda": re.compile(r"nvidia\d+"), "npu": re.compile(r"davinci\d+")}
VISIBLE_VARIABLES: dict[Device, str] = {
    "cuda": "CUDA_VISIBLE_DEVICES",
    "npu": "ASCEND_RT_VISIBLE_DEVICES",
}
"""The variable by which each kind of accelerator is chosen or hidden."""


def num_devices(device: Device, environ: Mapping[str, str], dev_dir: Path = Path("/dev")) -> int:
    """Return how many devices of this kind a rank with this environment could see.

    Args:
        device: Kind of device; of cpu there is always one.
        environ: Where the variable that chooses devices is looked up.
        dev_dir: The folder of device files.
    """
    if device == "cpu":
        return 1
    present = sum(bool(_FILES[device].fullmatch(path.name)) for path in dev_dir.iterdir())
    chosen = environ.get(VISIBLE_VARIABLES[device])
    return present if chosen is None else min(present, _num_chosen(chosen, present))


def _num_chosen(chosen: str, present: int) -> int:
    """Count a list such as ``0,2`` or ``GPU-8932f937``; it ends at the first that is not there.

    https://docs.nvidia.com/cuda/cuda-programming-guide, CUDA_VISIBLE_DEVICES
    """
    count = 0
    for word in (part.strip() for part in chosen.split(",")):
        is_index = word.lstrip("-").isdigit()
        if not word or (is_index and not 0 <= int(word) < present):
            break
        count += 1
    return count
