"""What a job may cost: the price of its flavor for as long as it may train, and its budget.

What a run really took is said by `trainjob.spent`.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from trainjob.errors import Problem
from trainjob.values import counted, format_duration

if TYPE_CHECKING:  # the model calls these rules, so it cannot be imported here
    from trainjob.job import TrainingJob

_FIELD = "limits.budget"
_FLOOR_HOURS = 2
"""For so long TI-ONE sets the price of a post-paid job aside before it starts."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a job costs, in the currency of the platform's flavors.

    Attributes:
        per_hour: All its machines for an hour.
        worst_case: What the training costs at most; None: no limit ends it.
    """

    per_hour: float
    worst_case: float | None


def cost_of(job: "TrainingJob") -> Cost | None:
    """Return what `job` costs; None: its flavor has no price, or it has no flavor.

    The worst case is that of the training, which ``limits.auto_stop`` ends, restarts included, and
    ``limits.grace`` after that. To stage data and to upload results takes its time beside that.
    """
    resources, auto_stop = job.resources, job.limits.auto_stop
    if resources.flavor is None or resources.flavor.price_per_hour is None:
        return None
    per_hour = resources.flavor.price_per_hour * resources.nodes
    if auto_stop is None:
        return Cost(per_hour, None)
    return Cost(per_hour, per_hour * (auto_stop + job.limits.grace).total_seconds() / 3600)


def cost_text(job: "TrainingJob") -> str | None:
    """Return what the job costs as a line for a person; None: there is nothing to say."""
    flavor, auto_stop, budget = job.resources.flavor, job.limits.auto_stop, job.limits.budget
    if flavor is None:
        return None
    cost = cost_of(job)
    if cost is None:
        return f"not known: the flavor {flavor} has no price"
    rate = f"{_rate(job, cost)}, {amount(_FLOOR_HOURS * cost.per_hour)} in {_FLOOR_HOURS} hours"
    if cost.worst_case is None or auto_stop is None:
        return f"{rate}; without limits.auto_stop there is no worst case"
    stop, grace = format_duration(auto_stop), format_duration(job.limits.grace)
    most = f"at most {amount(cost.worst_case)} for the training"
    within = "" if budget is None else f"; the budget is {amount(budget)}"
    return f"{rate}; {most}, which is stopped after {stop} and then has {grace} to save{within}"


def budget_problems(job: "TrainingJob") -> list[Problem]:
    """Return that the worst case of a job is above its budget, or that there is none.

    That its flavor has no price is another question, `price_problems`: the machine that reads the
    job may not be the one that knows the prices.
    """
    budget, cost = job.limits.budget, cost_of(job)
    if budget is None:
        return []
    asked = f"at most {amount(budget)}"
    if job.limits.auto_stop is None:
        found = "no limits.auto_stop, so that there is no worst case"
        do = "write limits.auto_stop, or remove the budget"
        return [Problem(_FIELD, asked, found, do, id="budget-unknown")]
    if cost is None or cost.worst_case is None or _as_written(cost.worst_case) <= budget:
        return []
    found = f"a worst case of {amount(cost.worst_case)}: {_rate(job, cost)}, until it is stopped"
    return [Problem(_FIELD, asked, found, _ways_below(job, cost, budget), id="budget-exceeded")]


def price_problems(job: "TrainingJob") -> list[Problem]:
    """Return that nobody here can tell whether a job stays within its budget."""
    budget, flavor = job.limits.budget, job.resources.flavor
    if budget is None or cost_of(job) is not None:
        return []
    found = "no flavor, and so no price" if flavor is None else f"the flavor {flavor} with no price"
    do = "name a flavor that has one, see `python -m flows flavor list`, or remove the budget"
    return [Problem(_FIELD, f"at most {amount(budget)}", found, do, id="budget-unknown")]


def amount(number: float) -> str:
    """Write a price: two digits after the point, more only for what is below a hundredth."""
    return f"{number:,.2f}" if number == 0 or number >= 0.01 else f"{number:.2g}"


def _rate(job: "TrainingJob", cost: Cost) -> str:
    nodes = counted(job.resources.nodes, "machine")
    return f"{amount(cost.per_hour)} an hour for {nodes} of {job.resources.flavor}"


def _ways_below(job: "TrainingJob", cost: Cost, budget: float) -> str:
    """Say what brings a job below its budget: the longest time that it pays for, first of all."""
    left = timedelta(hours=budget / cost.per_hour) - job.limits.grace
    ways = "choose a cheaper flavor, or raise the budget"
    if left < timedelta(seconds=1):
        return ways
    longest = format_duration(timedelta(seconds=int(left.total_seconds())))
    return f"set limits.auto_stop to at most {longest}, {ways}"


def _as_written(number: float) -> float:
    """Return what `amount` writes: a budget of what a worst case is said to be has to be enough."""
    return number if number < 0.01 else round(number, 2)
