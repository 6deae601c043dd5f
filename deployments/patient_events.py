"""How a server with SQLite takes in every event, however busy its database is.

Prefect's triggers read before they write. If another writer comes between, SQLite refuses at once,
and Prefect 3.8.8 drops the event after four such tries within 30 ms. Every later state of that run
then waits a quarter of an hour for the lost one: a restart is not made, a dead run stays Running.
Here events are taken in one by one, in their order, and each is tried for seconds; what follows
from them is done side by side, since a webhook may take seconds to answer. For the settings
``PREFECT_SERVER_EVENTS_MESSAGING_BROKER`` and ``PREFECT_SERVER_EVENTS_CAUSAL_ORDERING`` of the
server, which `deployments.serve` sets; PostgreSQL does not refuse, and needs neither. A server that
loads this module is also kept from standing still (`deployments.sqlite_cursors`).
"""

import asyncio
import time
from typing import Any

from prefect.server.events.ordering import memory as ordering
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.server.utilities.messaging import Message, MessageHandler, memory
from prefect.server.utilities.messaging.memory import (
    Publisher,
    break_topic,
    ephemeral_subscription,
)
from sqlalchemy.exc import OperationalError

from deployments.sqlite_cursors import close_failed_cursors

__all__ = ["CausalOrdering", "Consumer", "Publisher", "break_topic", "ephemeral_subscription"]

_ACTIONS = "actions"  # Prefect's name of the topic
_NUM_ACTIONS = 8
_PATIENCE_S = 10.0
_PAUSE_S = 0.05

close_failed_cursors()


class Consumer(memory.Consumer):
    """Takes one event at a time, and takes it again for a while if the database is locked."""

    def __init__(
        self, topic: str, subscription: memory.Subscription | None = None, **_options: Any
    ) -> None:
        """Subscribe to a topic; what else Prefect says is for brokers that are servers."""
        at_once = _NUM_ACTIONS if topic == _ACTIONS else 1
        super().__init__(topic, subscription, concurrency=at_once)

    async def run(self, handler: MessageHandler) -> None:
        """Give every message to the handler, until cancelled."""
        await super().run(_patient(handler))


class CausalOrdering(ordering.CausalOrdering):
    """Lets no event wait for the one it follows: that came before it, or does not come any more."""

    async def wait_for_leader(self, event: ReceivedEvent) -> None:
        """Return at once."""


def _patient(handler: MessageHandler) -> MessageHandler:
    async def handle(message: Message) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return await handler(message)
            except OperationalError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_PAUSE_S)

    return handle
