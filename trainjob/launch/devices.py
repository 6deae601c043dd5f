"""Which accelerators of this machine a rank could use, without importing torch.

Found by their device files, which is what a driver makes, less what the environment hides.
"""

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from trainjob.launch.launch import Card, Device

DEV_DIR = Path("/dev")
_NVIDIA_DIR = Path("/proc/driver/nvidia/gpus")
_FILES = {"cuda": re.compile(r"nvidia(\d+)"), "npu": re.compile(r"davinci(\d+)")}
_MINOR = re.compile(r"^Device Minor:\s*(\d+)$", re.MULTILINE)
_UUID = re.compile(r"^GPU UUID:\s*(\S+)$", re.MULTILINE)
_NPU_BUS = re.compile(r"PCIe ?Bus ?Info *: *([0-9A-Fa-f:.]+)")
_PATIENCE_S = 5.0
_BEGINS_UUID: dict[Device, tuple[str, ...]] = {"cuda": ("GPU-", "MIG-"), "npu": ()}
VISIBLE_VARIABLES: dict[Device, str] = {
    "cuda": "CUDA_VISIBLE_DEVICES",
    "npu": "ASCEND_RT_VISIBLE_DEVICES",
}
"""The variable by which each kind of accelerator is chosen or hidden."""


def visible_cards(device: Device, environ: Mapping[str, str]) -> tuple[Card, ...]:
    """Return the cards that a rank with this environment could use; of cpu there are none.

    They are in ascending order where they are chosen by their places, as CANN demands of its
    variable (https://www.hiascend.com/document, ASCEND_RT_VISIBLE_DEVICES), else as chosen.
    """
    present = _present(device)
    chosen = environ.get(VISIBLE_VARIABLES.get(device, ""))
    if chosen is None:
        return present
    found = [*{card.name: card for card in _chosen(device, chosen, present)}.values()]
    if all(card in present for card in found):
        found.sort(key=present.index)
    return tuple(found)


def num_devices(device: Device, environ: Mapping[str, str]) -> int:
    """Return how many devices of this kind a rank with this environment could use; 1 cpu."""
    return 1 if device == "cpu" else len(visible_cards(device, environ))


def bus_addresses(device: Device) -> dict[str, str]:
    """Return where the cards are on the PCI bus, such as ``0000:3b:00.0``, as far as that is told.

    npu-smi has numbers of its own for cards and chips, beside the place by which one is chosen:
    https://www.hiascend.com/document, npu-smi info -m and npu-smi info -t board
    """
    if device != "npu":
        return {f"cuda:{minor}": bus for bus, _, minor in _told_by_driver()}
    names = {card.choice: card.name for card in _present(device)}
    chips = [line.split() for line in _said_by_npu_smi("-m").splitlines()]
    boards = {
        names[words[2]]: _said_by_npu_smi("-t", "board", "-i", words[0], "-c", words[1])
        for words in chips
        if len(words) > 3 and words[2] in names
    }
    found = {name: _NPU_BUS.search(board) for name, board in boards.items()}
    return {name: match[1].lower() for name, match in found.items() if match}


def _said_by_npu_smi(*words: str) -> str:
    try:
        command = ["npu-smi", "info", *words]
        done = subprocess.run(command, capture_output=True, check=True, timeout=_PATIENCE_S)
    except (OSError, subprocess.SubprocessError):  # not there, or a sick card
        return ""
    return done.stdout.decode("utf-8", "replace")


def _present(device: Device) -> tuple[Card, ...]:
    """Return the cards that are here, each chosen by its place in the order of their buses.

    CUDA counts in another order, the fastest first, unless CUDA_DEVICE_ORDER says PCI_BUS_ID, as
    ranks are told.
    """
    if device == "cpu":
        return ()
    matches = (_FILES[device].fullmatch(path.name) for path in DEV_DIR.iterdir())
    minors = sorted(int(match[1]) for match in matches if match)
    if device == "cuda":
        minors = _by_bus(minors)
    return tuple(Card(f"{device}:{minor}", str(place)) for place, minor in enumerate(minors))


def _by_bus(minors: list[int]) -> list[int]:
    """Return the numbers of device files in the order of the buses, if the driver tells of all.

    They need not be the same: https://github.com/NVIDIA/nvidia-installer/issues/21
    """
    told = [minor for _, _, minor in _told_by_driver() if minor in minors]
    return told if len(told) == len(minors) else minors


def _told_by_driver() -> Iterator[tuple[str, str, int]]:
    """Yield bus, UUID and number of the device file of each NVIDIA card, ordered by the buses."""
    for file in sorted(_NVIDIA_DIR.glob("*/information")):
        text = file.read_text(encoding="utf-8", errors="replace")
        uuid, minor = _UUID.search(text), _MINOR.search(text)
        if uuid and minor:
            yield file.parent.name, uuid[1], int(minor[1])


def _chosen(device: Device, words: str, present: tuple[Card, ...]) -> Iterator[Card]:
    """Read a list such as ``0,2`` or ``GPU-8932f937``; it ends at the first that is not there.

    https://docs.nvidia.com/cuda/cuda-programming-guide, CUDA_VISIBLE_DEVICES
    """
    for word in (part.strip() for part in words.split(",")):
        if present and word.startswith(_BEGINS_UUID[device]):
            yield Card(_name_of(device, word), word)
        elif word.isdecimal() and int(word) < len(present):
            yield present[int(word)]
        else:  # also what others write for "no device": none, NoDevFiles
            return


def _name_of(device: Device, uuid: str) -> str:
    """Return the name of the card with a UUID, or with one that begins so."""
    for _, own, minor in _told_by_driver():
        if own.startswith(uuid):
            return f"{device}:{minor}"
    return uuid  # of a part of a card (MIG), or the driver does not say
