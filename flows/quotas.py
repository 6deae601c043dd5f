"""Takes the places of a run in the quotas of its flavor and tags, and waits while there is none.

Quotas are global concurrency limits of the server with the names of `quota_names`, made from a file
of the platform by `deployments.quotas`; a flavor or tag without one has none. They are places on
the server, not cards: those are claimed on the machine (`trainjob.launch.card_leases`).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from httpx import HTTPError
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectNotFound

from flows.quota_lease import POLL_S, QuotaLease
from trainjob.errors import TrainjobError
from trainjob.flavors import Flavor
from trainjob.job import TrainingJob
from trainjob.values import counted


def quota_names(job: TrainingJob) -> list[str]:
    """Return the names of the limits that hold for a job, if there are such.

    A flavor with a name of its own is one of its size, too: whoever writes a quota of a size means
    all such machines.
    """
    flavor = job.resources.flavor
    names = [flavor_quota(flavor.name or flavor.size), flavor_quota(flavor.size)] if flavor else []
    return [*dict.fromkeys(names), *(tag_quota(tag) for tag in sorted(set(job.tags)))]


def flavor_quota(text: str) -> str:
    """Return the name of the limit of a flavor, by its name or by its size in any spelling."""
    try:
        return f"trainjob flavor {Flavor.parse(text).size.lower()}"
    except ValueError:
        return f"trainjob flavor {text}"


def tag_quota(tag: str) -> str:
    """Return the name of the limit of a tag."""
    return f"trainjob tag {tag}"


@contextmanager
def holding_quotas(job: TrainingJob) -> Iterator[None]:
    """Have a place in every quota of a job until the block ends, all at once.

    Raises:
        TrainjobError: If the server refuses for another reason than that there is no place.
    """
    names = [limit.name for limit in _limits(quota_names(job))]
    if not names:
        yield
        return
    with _wait_for_lease(names).kept():
        yield


def _wait_for_lease(names: list[str]) -> QuotaLease:
    """Return a place in each quota, once all have one.

    Prefect's own waiting (3.8.8) is done by a thread that goes on after an interruption, and keeps
    the process from ending.
    """
    told = False
    while (lease := _lease(names)) is None:
        if not told:
            _tell_who_is_full(names)
            told = True
        time.sleep(POLL_S)
    return lease


def _lease(names: list[str]) -> QuotaLease | None:
    try:
        return QuotaLease.take(names)
    except HTTPError as error:
        raise TrainjobError(
            f"asked for a place in the quotas {names}, found: {error}; start the run again when "
            "the server answers"
        ) from error


def _tell_who_is_full(names: list[str]) -> None:
    limits = _limits(names)
    full = [limit for limit in limits if limit.active_slots >= limit.limit] or limits
    said = ", ".join(f"{limit.name!r} (at most {counted(limit.limit, 'run')})" for limit in full)
    get_run_logger().warning("waiting for a place in the quota %s", said)


def _limits(names: list[str]) -> list[GlobalConcurrencyLimitResponse]:
    found = []
    with get_client(sync_client=True) as client:
        for name in names:
            try:
                # The client (3.8.8) puts it into a path as it is, where # would end it.
                limit = client.read_global_concurrency_limit_by_name(quote(name, safe=""))
            except ObjectNotFound:
                continue
            if limit.active:
                found.append(limit)
    return found
