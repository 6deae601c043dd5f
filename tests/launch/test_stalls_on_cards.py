"""A rank that waits for its card is alive while that computes. The driver is SIMULATED."""

import sys
from types import SimpleNamespace

import pytest

from tests.launch.conftest import MakeLaunch
from trainjob.launch import card_usage
from trainjob.launch.failure import TrainingStalled
from trainjob.launch.launch import Card, Launch, Lease
from trainjob.launch.training import run_training

WAITS = """
    import time
    class Loss:
        def item(self):
            time.sleep({seconds})
    Loss().item()
"""


def launch_on_card(make_launch: MakeLaunch, monkeypatch, seconds: int, *percents: int) -> Launch:
    """Return a launch on the second of two cards, of which this much memory is worked on."""
    driver = SimpleNamespace(
        NVMLError=type("NVMLError", (Exception,), {}),
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(percents),
        nvmlDeviceGetHandleByIndex=lambda place: place,
        nvmlDeviceGetMinorNumber=lambda card: card,
        nvmlDeviceGetUtilizationRates=lambda card: SimpleNamespace(gpu=100, memory=percents[card]),
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(card_usage, "_LOOK_S", 0.2)
    lease = Lease(cards=(Card("cuda:1", "1"),), claim=0)
    return make_launch(WAITS.format(seconds=seconds), device="cuda", lease=lease, stall_s=1.5)


def test_a_rank_that_waits_for_a_card_that_computes_goes_on(make_launch, monkeypatch):
    launch = launch_on_card(make_launch, monkeypatch, 4, 0, 60)

    assert run_training(launch).reason == "finished"


def test_a_rank_whose_card_polls_for_another_is_stopped(make_launch, monkeypatch):
    launch = launch_on_card(make_launch, monkeypatch, 60, 60, 1)

    with pytest.raises(TrainingStalled):
        run_training(launch)
