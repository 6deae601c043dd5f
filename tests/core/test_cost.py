"""What a job may cost, said before it starts."""

from typing import Any

import pytest

from trainjob.cost import Cost, cost_of, cost_text
from trainjob.job import TrainingJob


def job(auto_stop: str = "off", **flavor: Any) -> TrainingJob:
    sized = {"cores": 8, "memory_gib": 40, "card": "V100", "cards": 1} | flavor
    return TrainingJob.parse(
        {
            "name": "x",
            "algorithm": {"code": {"url": "c"}, "boot_file": "t.py"},
            "resources": {"flavor": sized},
            "limits": {"auto_stop": auto_stop, "grace": "30m"},
        }
    )


def test_the_worst_case_is_the_rate_until_the_training_has_ended() -> None:
    priced = job("1h30m", price_per_hour=12.5)

    assert cost_of(priced) == Cost(per_hour=12.5, worst_case=25)
    assert cost_text(priced) == (
        "12.50 an hour for 1 machine of 8c40g V100*1; at most 25.00 for the training, which is "
        "stopped after 1h30m and then has 30m to save"
    )


def test_every_machine_of_a_job_costs() -> None:
    one = job("2h", price_per_hour=3)
    # Jobs of several machines are not read so far.
    two = one.model_copy(update={"resources": one.resources.model_copy(update={"nodes": 2})})

    assert cost_of(two) == Cost(per_hour=6, worst_case=15)
    assert str(cost_text(two)).startswith("6.00 an hour for 2 machines of 8c40g V100*1; at most 15")


def test_without_auto_stop_there_is_no_worst_case() -> None:
    priced = job(price_per_hour=1000, name="big")

    assert cost_of(priced) == Cost(per_hour=1000, worst_case=None)
    assert cost_text(priced) == (
        "1,000.00 an hour for 1 machine of big (8c40g V100*1); without limits.auto_stop there is "
        "no worst case"
    )


def test_a_flavor_without_a_price_has_no_cost() -> None:
    assert cost_of(job("1h")) is None
    assert cost_text(job("1h")) == "not known: the flavor 8c40g V100*1 has no price"


def test_without_a_flavor_nothing_is_said_of_the_cost() -> None:
    plain = TrainingJob.parse(
        {"name": "x", "algorithm": {"code": {"url": "c"}, "boot_file": "t.py"}}
    )

    assert cost_of(plain) is None
    assert cost_text(plain) is None


@pytest.mark.parametrize(
    ("price", "text"), [(0, "0.00 an hour"), (0.0042, "0.0042 an hour"), (0.5, "0.50 an hour")]
)
def test_small_prices_are_not_rounded_to_nothing(price: float, text: str) -> None:
    assert str(cost_text(job("1h", price_per_hour=price))).startswith(text)
