"""The places of a run in quotas: kept while it lives, given back when it ends.

The server lends them for a time, which a thread extends. A server that was away for longer takes
them back before it can be asked; Prefect's own `concurrency` (3.8.8) then leaves the run without
them for good, beside which another may go on. Here they are taken again. `flows.quotas` is the
caller.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Self
from uuid import UUID

from httpx import HTTPError, HTTPStatusError, codes
from prefect import get_run_logger
from prefect.client.orchestration import get_client

from trainjob.background import in_background

POLL_S = 3.0
"""The time between two looks for a place where there is none."""

_LEASE_S = 300.0
"""After a killed process, its places are free so soon; while it lives, it says so in time."""

_RENEW_S = 0.75 * _LEASE_S
_RETRY_S = 10.0
"""The time between two tries to say so to a server that does not answer."""

_LAST_WORD_S = 2.0


class QuotaLease:
    """A place in each of some quotas.

    Attributes:
        lease_id: By which the server knows it; None: the server has taken it back.
    """

    def __init__(self, names: Sequence[str], lease_id: UUID) -> None:
        """Hold what was taken; see `take`."""
        self._names = list(names)
        self.lease_id: UUID | None = lease_id

    @classmethod
    def take(cls, names: Sequence[str]) -> Self | None:
        """Take a place in each of these limits if all have one.

        Returns:
            None if one of them has no place.

        Raises:
            httpx.HTTPError: If the server refuses for another reason, or does not answer.
        """
        lease_id = _take(names)
        return None if lease_id is None else cls(names, lease_id)

    @contextmanager
    def kept(self, *, renew_s: float = _RENEW_S, poll_s: float = POLL_S) -> Iterator[None]:
        """Keep the places until the block ends, then give them back.

        Args:
            renew_s: How often the server is told that the run still lives.
            poll_s: How often a place is looked for if they were lost, and are taken by others.
        """
        ended = threading.Event()
        keep = partial(self._keep, ended, renew_s, poll_s)
        try:
            with in_background(keep, "quota-lease", ended, _LAST_WORD_S):
                yield
        finally:
            self._give_back()

    def _keep(self, ended: threading.Event, renew_s: float, poll_s: float) -> None:
        pause_s = renew_s
        while not ended.wait(pause_s):
            try:
                pause_s = renew_s if self._renew() or self._take_again() else poll_s
            except HTTPError as error:
                get_run_logger().debug("the quotas %s are not renewed: %s", self._names, error)
                pause_s = min(renew_s, _RETRY_S)

    def _renew(self) -> bool:
        """Tell the server that the run lives; return whether it has its places still."""
        if self.lease_id is None:
            return False
        try:
            with get_client(sync_client=True) as client:
                client.renew_concurrency_lease(self.lease_id, _LEASE_S)
        except HTTPStatusError as error:
            if error.response.status_code != codes.GONE:
                raise
            self.lease_id = None
            get_run_logger().warning(
                "the server knows no more of the place in the quota %s: it was away for longer "
                "than %g s, or was started again without its leases; the run goes on and takes it "
                "again, as soon as there is one",
                ", ".join(map(repr, self._names)),
                _LEASE_S,
            )
            return False
        return True

    def _take_again(self) -> bool:
        self.lease_id = _take(self._names)
        if self.lease_id is None:
            return False
        get_run_logger().info("has its place in the quota again: %s", ", ".join(self._names))
        return True

    def _give_back(self) -> None:
        if self.lease_id is None:
            return
        try:
            with get_client(sync_client=True) as client:
                client.release_concurrency_slots_with_lease(self.lease_id)
        except HTTPError as error:
            get_run_logger().warning(
                "the place in the quota %s is free in %g s, since the server could not be told: %s",
                ", ".join(map(repr, self._names)),
                _LEASE_S,
                error,
            )


def _take(names: Sequence[str]) -> UUID | None:
    try:
        with get_client(sync_client=True) as client:
            taken = client.increment_concurrency_slots_with_lease(
                list(names), 1, "concurrency", _LEASE_S
            )
    except HTTPStatusError as error:
        if error.response.status_code == codes.LOCKED:
            return None
        raise
    return UUID(taken.json()["lease_id"])
