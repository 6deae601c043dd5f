"""What NVIDIA's driver says of the cards: which are in use, and how much is used of a run's own.

Needs the package nvidia-ml-py (the extra ``nvidia``) and asks nothing without it, nor of other
makers' cards.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainjob.background import in_background
from trainjob.events import Noted, emit
from trainjob.launch.launch import Device, Lease
from trainjob.launch.rank_files import write_rank_file
from trainjob.values import format_size

_LOOK_S = 5.0
_COMPUTING_PERCENT = 5


def cards_in_use(device: Device) -> set[str]:
    """Return the names of the cards on which a process computes, as far as that can be known."""
    with _driver(device) as driver:
        return {name for name, card in driver.cards().items() if driver.is_in_use(card)}


@contextmanager
def signing_card_activity(device: Device, lease: Lease | None, sign: Path) -> Iterator[None]:
    """Write a file again and again in the block while something is computed on the leased cards.

    That a card is busy says nothing: while a collective waits for another rank, its kernel polls,
    and the card is busy all of the time. But its memory is at rest then.

    Args:
        device: Kind of the cards.
        lease: Those of the run.
        sign: The file, in the folder of the ranks' records.
    """
    with _driver(device if lease else "cpu") as driver:
        known = driver.cards()
        cards = [known[card.name] for card in lease.cards if card.name in known] if lease else []
        ended = threading.Event()

        def look_regularly() -> None:
            while not ended.wait(_LOOK_S):
                if any(driver.memory_percent(card) >= _COMPUTING_PERCENT for card in cards):
                    with suppress(OSError):  # a full disk, of which others tell
                        write_rank_file(sign, str(time.monotonic_ns()))

        if not cards:
            yield
            return
        with in_background(look_regularly, "card-activity", ended, patience_s=_LOOK_S):
            yield


@contextmanager
def noting_card_usage(device: Device, lease: Lease | None) -> Iterator[None]:
    """Tell at the end of the block how much of the leased cards was used in it."""
    with _driver(device if lease else "cpu") as driver:
        known = driver.cards()
        names = [card.name for card in lease.cards if card.name in known] if lease else []
        usages = {name: Usage() for name in names}
        if not usages:
            yield
            return
        ended = threading.Event()

        def look_regularly() -> None:
            while not ended.wait(_LOOK_S):
                for name, usage in usages.items():
                    driver.look(known[name], usage)

        try:
            # A sick card makes the driver hang, which is no reason to wait.
            with in_background(look_regularly, "card-usage", ended, patience_s=_LOOK_S):
                yield
        finally:
            for name, usage in usages.items():
                if usage.busy_percents:
                    emit(Noted(f"card {name}: {usage}"))


@dataclass
class Usage:
    """What was seen of a card.

    Attributes:
        peak_bytes: Most memory that was in use.
        total_bytes: Memory that it has.
        busy_percents: For how much of the time before each look something was computed on it.
    """

    peak_bytes: int = 0
    total_bytes: int = 0
    busy_percents: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        """Return it as words for a person."""
        busy_percent = sum(self.busy_percents) / len(self.busy_percents)
        peak, total = format_size(self.peak_bytes), format_size(self.total_bytes)
        return f"at most {peak} of {total} in use, computing {busy_percent:.0f} % of the time"


class _Driver:
    """NVIDIA's driver, or none. What it cannot say, as of a part of a card, is left out.

    Args:
        nvml: The module that asks it; None: there is none, and nothing is known.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def cards(self) -> dict[str, Any]:
        """Return by our names what names each card to the driver."""
        found: dict[str, Any] = {}
        if self._nvml is None:
            return found
        with suppress(self._nvml.NVMLError):
            for place in range(self._nvml.nvmlDeviceGetCount()):
                card = self._nvml.nvmlDeviceGetHandleByIndex(place)
                found[f"cuda:{self._nvml.nvmlDeviceGetMinorNumber(card)}"] = card
        return found

    def is_in_use(self, card: Any) -> bool:
        """Tell whether a process computes on a card."""
        with suppress(self._nvml.NVMLError):
            return bool(self._nvml.nvmlDeviceGetComputeRunningProcesses(card))
        return False

    def memory_percent(self, card: Any) -> int:
        """Return for how much of the last second a card's memory was read or written."""
        with suppress(self._nvml.NVMLError):
            percent: int = self._nvml.nvmlDeviceGetUtilizationRates(card).memory
            return percent
        return 0

    def look(self, card: Any, usage: Usage) -> None:
        """Add to `usage` what is in use of a card now."""
        with suppress(self._nvml.NVMLError):
            memory = self._nvml.nvmlDeviceGetMemoryInfo(card)
            usage.busy_percents.append(self._nvml.nvmlDeviceGetUtilizationRates(card).gpu)
            usage.peak_bytes = max(usage.peak_bytes, memory.used)
            usage.total_bytes = memory.total


@contextmanager
def _driver(device: Device) -> Iterator[_Driver]:
    """Yield the driver of a kind of device, ready to be asked."""
    try:
        import pynvml  # of nvidia-ml-py, an optional package
    except ImportError:
        pynvml = None
    if device != "cuda" or pynvml is None:
        yield _Driver(None)
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver here
        yield _Driver(None)
        return
    try:
        yield _Driver(pynvml)
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
