"""What is said of cards that were used. The driver is SIMULATED, but in the test marked cuda."""
# ruff: noqa: N802 - the names are those of NVML

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.interruptions import Stop, runs, stop_start_of_thread
from tests.waiting import wait_until
from trainjob.events import Event, Noted, listening
from trainjob.launch import card_leases, card_usage, devices
from trainjob.launch.card_leases import leased_cards
from trainjob.launch.card_usage import (
    cards_in_use,
    noting_card_usage,
    signing_card_activity,
)
from trainjob.launch.launch import Card, Lease

GIB = 2**30
BOTH = Lease(cards=(Card("cuda:0", "0"), Card("cuda:1", "1")), claim=-1)


class SimulatedNvml:
    """Two cards of 8 GiB, the first in use by somebody, as nvidia-ml-py shows them."""

    class NVMLError(Exception):
        """What every call may raise."""

    def __init__(self) -> None:
        self.used_gib = [1, 3, 2]
        self.is_open = False
        self.is_broken = False
        self.polls = False
        self.num_looks = 0

    def nvmlInit(self) -> None:
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, place: int) -> str:
        return f"handle {place}"

    def nvmlDeviceGetMinorNumber(self, handle: str) -> int:
        return int(handle[-1])

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[int]:
        return [4711] if handle.endswith("0") else []

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        if self.is_broken or handle.endswith("0"):
            raise self.NVMLError
        return SimpleNamespace(
            used=(self.used_gib.pop(0) if self.used_gib else 2) * GIB, total=8 * GIB
        )

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        self.num_looks += 1
        if self.is_broken:
            raise self.NVMLError
        return SimpleNamespace(gpu=100 if self.polls else 50, memory=0 if self.polls else 40)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedNvml]:
    simulated = SimulatedNvml()
    monkeypatch.setitem(sys.modules, "pynvml", simulated)
    monkeypatch.setattr(card_usage, "_LOOK_S", 0.001)
    yield simulated
    assert not simulated.is_open


def used(nvml: SimulatedNvml, lease: Lease | None = BOTH) -> list[Event]:
    """Use the cards until the last of three looks, and return what is said of it."""
    told: list[Event] = []
    with listening(told.append), noting_card_usage("cuda", lease):
        if lease and not nvml.is_broken:
            wait_until(lambda: not nvml.used_gib)
    return told


def test_peak_and_load_of_a_card_are_noted_and_what_the_driver_cannot_say_is_not(nvml) -> None:
    text = "card cuda:1: at most 3 GiB of 8 GiB in use, computing 50 % of the time"

    assert used(nvml) == [Noted(text)]


def test_a_broken_driver_changes_nothing(nvml) -> None:
    nvml.is_broken = True

    assert used(nvml) == []


def test_a_job_without_cards_is_not_watched(nvml) -> None:
    assert used(nvml, lease=None) == []


def test_without_the_package_nothing_is_known(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)

    assert cards_in_use("cuda") == set()


def test_a_card_that_works_on_its_memory_signs_that_it_computes(nvml, tmp_path) -> None:
    sign = tmp_path / "sign"

    with signing_card_activity("cuda", BOTH, sign):
        wait_until(sign.exists)
        first = sign.read_text()
        wait_until(lambda: sign.read_text() != first)

    assert [file.name for file in tmp_path.iterdir()] == ["sign"]


@pytest.mark.parametrize("state", ["polls", "is_broken"])
def test_a_card_that_only_polls_or_cannot_be_asked_signs_nothing(nvml, tmp_path, state) -> None:
    setattr(nvml, state, True)

    with signing_card_activity("cuda", BOTH, tmp_path / "sign"):
        wait_until(lambda: nvml.num_looks >= 4)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nvml")
@pytest.mark.parametrize(
    ("device", "lease"),
    [("cuda", None), ("npu", BOTH), ("cuda", Lease(cards=(Card("cuda:7", "7"),), claim=-1))],
)
def test_nobody_looks_at_cards_that_are_not_of_the_run(tmp_path, device, lease) -> None:
    with signing_card_activity(device, lease, tmp_path / "sign"):
        assert not runs("card-activity")


@pytest.mark.usefixtures("nvml")
@pytest.mark.parametrize("is_late", [True, False])
def test_nothing_looks_at_cards_when_its_start_was_interrupted(is_late, monkeypatch) -> None:
    stop_start_of_thread(monkeypatch, "card-usage", is_late=is_late)

    with pytest.raises(Stop), noting_card_usage("cuda", BOTH):
        pytest.fail("the block was entered")

    wait_until(lambda: not runs("card-usage"))


@pytest.mark.usefixtures("nvml")
def test_cards_that_somebody_uses_without_asking_come_last(tmp_path, monkeypatch) -> None:
    for name in ("nvidia0", "nvidia1"):
        (tmp_path / name).touch()
    monkeypatch.setattr(devices, "DEV_DIR", tmp_path)
    monkeypatch.setenv("TRAINJOB_CARDS_DIR", str(tmp_path / "cards"))
    monkeypatch.setattr(card_leases, "_POLL_S", 0.01)

    with leased_cards("cuda", 1, {}, run_id="one") as lease:
        assert lease
        assert [card.choice for card in lease.cards] == ["1"]
    with leased_cards("cuda", 2, {}, run_id="two") as lease:
        assert lease
        assert [card.choice for card in lease.cards] == ["0", "1"]


@pytest.mark.cuda
@pytest.mark.skipif(not devices.num_devices("cuda", {}), reason="no NVIDIA card")
def test_a_real_card_is_known_to_the_driver() -> None:
    pytest.importorskip("pynvml")

    with card_usage._driver("cuda") as driver:
        assert set(driver.cards()) == {card.name for card in devices.visible_cards("cuda", {})}
