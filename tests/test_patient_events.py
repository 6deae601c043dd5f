"""How the server takes in its events: one by one, again if the database is locked, no waiting."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from prefect.server.events.schemas.events import ReceivedEvent, Resource
from prefect.server.utilities.messaging import BrokerModule, Message
from prefect.server.utilities.messaging.memory import Cache
from sqlalchemy.exc import OperationalError

from deployments import patient_events
from deployments.patient_events import CausalOrdering, Consumer, Publisher
from tests.waiting import PATIENCE_S

TOPIC = "patient-events"


async def consume(
    topic: str,
    messages: Sequence[bytes],
    handle: Callable[[Message], Awaitable[None]],
    is_done: asyncio.Event,
) -> None:
    """Publish messages and have them handled until that is done."""
    consumer = Consumer(topic, group="tests", name="test")
    async with Publisher(topic, cache=Cache()) as publisher:
        for message in messages:
            await publisher.publish_data(message, {})
    task = asyncio.create_task(consumer.run(handle))
    async with asyncio.timeout(PATIENCE_S):
        await is_done.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await consumer.cleanup()


def taken_in(messages: list[bytes], num_locked: int) -> list[bytes]:
    """Publish messages; the database is locked for the first times that one is handled."""
    handled: list[bytes] = []

    async def take_in() -> None:
        is_done = asyncio.Event()
        tries = 0

        async def handle(message: Message) -> None:
            nonlocal tries
            tries += 1
            if tries <= num_locked:
                raise OperationalError("INSERT", None, Exception("database is locked"))
            handled.append(bytes(message.data))  # type: ignore[arg-type]  # published as bytes
            if len(handled) == len(messages):
                is_done.set()

        await consume(TOPIC, messages, handle, is_done)

    asyncio.run(take_in())
    return handled


def test_prefect_takes_it_for_a_broker() -> None:
    assert isinstance(patient_events, BrokerModule)


@pytest.mark.parametrize("num_locked", [0, 1, 6])
def test_events_come_in_their_order_however_often_the_database_is_locked(num_locked: int) -> None:
    messages = [b"crashed", b"held", b"running"]

    assert taken_in(messages, num_locked) == messages


def test_an_action_that_takes_long_holds_up_no_other() -> None:
    """As a webhook that does not answer must not hold up the restart of a run."""

    async def take_in() -> None:
        is_done = asyncio.Event()

        async def handle(message: Message) -> None:
            if message.data == b"webhook":
                await is_done.wait()
            else:
                is_done.set()

        await consume("actions", [b"webhook", b"restart"], handle, is_done)

    asyncio.run(take_in())


def test_an_event_does_not_wait_for_one_that_never_comes() -> None:
    event = ReceivedEvent(
        event="prefect.flow-run.Crashed",
        resource=Resource({"prefect.resource.id": "prefect.flow-run.1"}),
        occurred=datetime.now(UTC),
        id=uuid4(),
        follows=uuid4(),
    )

    async def take_in() -> None:
        async with CausalOrdering("tests").preceding_event_confirmed(no_more, event):
            pass

    asyncio.run(asyncio.wait_for(take_in(), timeout=PATIENCE_S))


async def no_more(event: ReceivedEvent, depth: int = 0) -> None:
    raise AssertionError(event)
