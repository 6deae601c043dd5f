"""What a job may cost: the price of its flavor, for as long as it may train."""

from dataclasses import dataclass

from trainjob.job import TrainingJob
from trainjob.values import counted, format_duration


@dataclass(frozen=True, slots=True)
class Cost:
    """What a job costs, in the currency of the platform's flavors.

    Attributes:
        per_hour: All its machines for an hour.
        worst_case: What the training costs at most; None: no limit ends it.
    """

    per_hour: float
    worst_case: float | None


def cost_of(job: TrainingJob) -> Cost | None:
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


def cost_text(job: TrainingJob) -> str | None:
    """Return what the job costs as a line for a person; None: there is nothing to say."""
    flavor, auto_stop = job.resources.flavor, job.limits.auto_stop
    if flavor is None:
        return None
    cost = cost_of(job)
    if cost is None:
        return f"not known: the flavor {flavor} has no price"
    nodes = counted(job.resources.nodes, "machine")
    rate = f"{_amount(cost.per_hour)} an hour for {nodes} of {flavor}"
    if cost.worst_case is None or auto_stop is None:
        return f"{rate}; without limits.auto_stop there is no worst case"
    stop, grace = format_duration(auto_stop), format_duration(job.limits.grace)
    most = f"at most {_amount(cost.worst_case)} for the training"
    return f"{rate}; {most}, which is stopped after {stop} and then has {grace} to save"


def _amount(number: float) -> str:
    """Write a price: two digits after the point, more only for what is below a hundredth."""
    return f"{number:,.2f}" if number == 0 or number >= 0.01 else f"{number:.2g}"
