"""Gives cards to one run at a time, on the whole machine, whether a server knows of it or not.

Claims (`trainjob.launch.card_claims`) are served in their order, each with all of its cards at
once: nobody holds cards while it waits for more, and a run that wants many is not overtaken by runs
that want few. Claims to different cards do not wait for one another. The supervisor of a run has
its claim open as well, so its cards stay its own until the last rank has ended. See decision 0011.
"""

import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from trainjob.errors import LaunchError
from trainjob.launch.card_claims import Claim, Claims, HeldClaim
from trainjob.launch.card_usage import cards_in_use
from trainjob.launch.devices import VISIBLE_VARIABLES, visible_cards
from trainjob.launch.launch import Card, Device, Lease
from trainjob.values import counted, format_duration

_logger = logging.getLogger(__name__)
_POLL_S = 0.5


@contextmanager
def leased_cards(
    device: Device,
    count: int,
    environ: Mapping[str, str],
    *,
    run_id: str,
    timeout_s: float | None = None,
) -> Iterator[Lease | None]:
    """Have cards for a run alone until the block ends; first wait until that many are free.

    Cards on which somebody computes without a claim come last. What is waited for is told as a
    warning. Whatever interrupts the wait gives up the place in the queue.

    Args:
        device: Kind of device; of cpu there are no cards.
        count: How many are wanted.
        environ: Where the variable that chooses cards is looked up.
        run_id: Who wants them.
        timeout_s: How long to wait; None: for ever.

    Yields:
        The cards, and what holds them; None if none are wanted.

    Raises:
        LaunchError: If the machine does not have that many, or not in time.
    """
    if device == "cpu" or count == 0:
        yield None
        return
    cards = visible_cards(device, environ)
    if len(cards) < count:
        raise LaunchError(
            f"asked for {counted(count, 'card')} of {device}, found {len(cards)} on this machine; "
            f"ask for less, or check the driver and {VISIBLE_VARIABLES[device]}"
        )
    claims = Claims()
    wanted = Claim(run_id, os.getpid(), count, tuple(card.name for card in cards))
    with claims.held(wanted) as held:
        yield Lease(_wait(claims, held, device, cards, timeout_s), held.descriptor)


def _wait(
    claims: Claims,
    held: HeldClaim,
    device: Device,
    cards: tuple[Card, ...],
    timeout_s: float | None,
) -> tuple[Card, ...]:
    """Wait for the cards of a claim, and return them in ascending order."""
    deadline = time.monotonic() + (math.inf if timeout_s is None else timeout_s)
    count, told = held.claim.count, ""
    # A driver that hangs must hold up no other run, so not while the claims are ours alone.
    in_use = cards_in_use(device) if len(cards) > count else set()
    while True:
        with claims.alone():
            living = claims.living()
            taken = {name for claim in living.values() for name in claim.has}
            free = [card for card in cards if card.name not in taken]
            before = _waiting_before(held, living)
            if len(free) >= count and not before:
                chosen = sorted(free, key=lambda card: card.name in in_use)[:count]
                held.take(tuple(card.name for card in chosen))
                return tuple(card for card in cards if card in chosen)
        asked = f"{counted(count, 'card')} of {device}"
        found = f"{len(free)} of {len(cards)} free{_why(held, living.values(), len(before))}"
        if time.monotonic() >= deadline:
            waited = format_duration(timedelta(seconds=timeout_s or 0))
            raise LaunchError(
                f"asked for {asked}, found {found}, after {waited}; wait for those runs or stop "
                "them, ask for less, or raise limits.wait_for_cards"
            )
        if found != told:
            _logger.warning("waiting for %s: %s", asked, found)
            told = found
        time.sleep(_POLL_S)


def _waiting_before(held: HeldClaim, living: Mapping[int, Claim]) -> list[Claim]:
    """Return the claims that wait for some of the same cards and were made before."""
    wanted = set(held.claim.among)
    return [
        claim
        for number, claim in living.items()
        if number < held.number and not claim.has and not wanted.isdisjoint(claim.among)
    ]


def _why(held: HeldClaim, living: Iterable[Claim], num_before: int) -> str:
    """Return who has the cards of a claim that waits, and how many wait before it."""
    wanted = set(held.claim.among)
    reasons = [
        f"run {claim.run} has {', '.join(claim.has)}"
        for claim in living
        if not wanted.isdisjoint(claim.has)
    ]
    if num_before:
        reasons.append(f"{counted(num_before, 'run')} asked before")
    return "".join(f"; {reason}" for reason in reasons)
