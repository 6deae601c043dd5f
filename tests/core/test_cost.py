"""What a job may cost, said before it starts."""

from typing import Any

import pytest

from trainjob.cost import Cost, budget_problems, cost_of, cost_text, price_problems
from trainjob.errors import JobError
from trainjob.job import TrainingJob


def job(auto_stop: str = "off", budget: float | None = None, **flavor: Any) -> TrainingJob:
    sized = {"cores": 8, "memory_gib": 40, "card": "V100", "cards": 1} | flavor
    return TrainingJob.parse(
        {
            "name": "x",
            "algorithm": {"code": {"url": "c"}, "boot_file": "t.py"},
            "resources": {"flavor": sized},
            "limits": {"auto_stop": auto_stop, "grace": "30m", "budget": budget},
        }
    )


def test_the_worst_case_is_the_rate_until_the_training_has_ended() -> None:
    priced = job("1h30m", price_per_hour=12.5)

    assert cost_of(priced) == Cost(per_hour=12.5, worst_case=25)
    assert cost_text(priced) == (
        "12.50 an hour for 1 machine of 8c40g V100*1, 25.00 in 2 hours; at most 25.00 for the "
        "training, which is stopped after 1h30m and then has 30m to save"
    )


def test_every_machine_of_a_job_costs() -> None:
    one = job("2h", price_per_hour=3)
    # Jobs of several machines are not read so far.
    two = one.model_copy(update={"resources": one.resources.model_copy(update={"nodes": 2})})

    assert cost_of(two) == Cost(per_hour=6, worst_case=15)
    said = "6.00 an hour for 2 machines of 8c40g V100*1, 12.00 in 2 hours; at most 15"
    assert str(cost_text(two)).startswith(said)


def test_without_auto_stop_there_is_no_worst_case_but_what_two_hours_cost() -> None:
    priced = job(price_per_hour=1000, name="big")

    assert cost_of(priced) == Cost(per_hour=1000, worst_case=None)
    assert cost_text(priced) == (
        "1,000.00 an hour for 1 machine of big (8c40g V100*1), 2,000.00 in 2 hours; without "
        "limits.auto_stop there is no worst case"
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


def test_a_job_above_its_budget_is_refused_with_the_time_that_it_pays_for() -> None:
    with pytest.raises(JobError) as refused:
        job("2h", budget=20, price_per_hour=10)

    [problem] = refused.value.problems
    assert (problem.id, problem.level) == ("budget-exceeded", "error")
    assert str(problem) == (
        "limits.budget: asked for at most 20.00, found a worst case of 25.00: 10.00 an hour for 1 "
        "machine of 8c40g V100*1, until it is stopped; set limits.auto_stop to at most 1h30m, "
        "choose a cheaper flavor, or raise the budget"
    )
    assert not budget_problems(job("1h30m", budget=20, price_per_hour=10))


def test_no_time_is_named_where_the_budget_does_not_pay_for_the_grace() -> None:
    with pytest.raises(JobError, match="stopped; choose a cheaper flavor, or raise the budget"):
        job("1h", budget=1, price_per_hour=10)


def test_what_the_worst_case_is_said_to_be_is_budget_enough() -> None:
    said = "at most 16.67 for the training"

    within = job("1h10m", budget=16.67, price_per_hour=10)

    assert said in str(cost_text(within))
    assert str(cost_text(within)).endswith("; the budget is 16.67")


def test_a_budget_needs_a_time_limit() -> None:
    with pytest.raises(JobError) as refused:
        job("off", budget=20, price_per_hour=10)

    [problem] = refused.value.problems
    assert problem.id == "budget-unknown"
    assert "no limits.auto_stop, so that there is no worst case" in str(problem)


def test_a_budget_for_a_flavor_without_a_price_is_told_where_the_job_runs() -> None:
    unpriced = job("1h", budget=20)
    nothing = TrainingJob.parse(
        {
            "name": "x",
            "algorithm": {"code": {"url": "c"}, "boot_file": "t.py"},
            "limits": {"auto_stop": "1h", "budget": 20},
        }
    )

    assert not budget_problems(unpriced)  # the worker may know the price
    [problem] = price_problems(unpriced)
    assert (problem.id, problem.level) == ("budget-unknown", "error")
    assert problem.found == "the flavor 8c40g V100*1 with no price"
    assert [p.found for p in price_problems(nothing)] == ["no flavor, and so no price"]
    assert not price_problems(job("1h", price_per_hour=1, budget=20))
    assert not price_problems(job("1h"))
