"""How often a run was started, why it was started now, and that no other process runs it as well.

Prefect calls a run Crashed whose process was killed and leaves it. The automations of
`deployments.automations` start it again under the same id, if its process asked for that while it
lived. What must outlive the process is kept by the server: the `flows.tally` so far as labels of
the run, the wish to be started again as an event, and why a process was started in the run's
states. docs/operations.md has the whole story; `flows.training_job` is the caller.
"""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import takewhile
from operator import attrgetter
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.events import Event, RelatedResource, Resource
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Running

from flows.tally import Tally, earlier_of
from trainjob.attempts import Earlier
from trainjob.background import background_thread

RESTARTABLE_EVENT = "trainjob.flow-run.restartable"
"""Said by the process of a run: if the run becomes Crashed, it is to be started again."""

RESTART_PENDING = "RestartPending"
"""Name of the Crashed state that a run waits in until its worker has nothing more to report."""

AWAITING_RESTART = "AwaitingRestart"
"""Name of the Scheduled state that a worker takes a run from which is started again."""

_LATE = "Late"
"""Name of the Scheduled state that Prefect gives to a run that no worker takes."""

_TAKEN_BACK = "its process lives"
"""How the message of a Running state begins that no new process stands behind."""

_POLL_S = 5.0
_CALM_FACTOR = 3.6
"""18 s are less than `RestartPending` lasts: a living process is heard before it is replaced."""

_CALM_AFTER_S = 120.0
"""What may take the run from a living process comes soon: a late word on the process before it, or
what the server does once it is back. Later, looks are for what a person does to the run."""

_UNATTENDED_CANCEL_S = 40.0
"""A worker ends a cancelled run within 30 s; one that lives longer has no worker that listens."""

_LAST_WORD_S = 60.0
"""How long what was counted last is told again to a server that is away, while the process ends."""

_LAST_WORD_PAUSE_S = 1.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One start of a process for a run.

    Attributes:
        run_id: The run.
        number: How many processes the run has had, this one included.
        is_redelivered: Whether an automation started it because the process before it was killed;
            a person's retry and a first start are not.
        was_cancelled: Whether the process before it was killed while the run was being cancelled.
        earlier: What the processes before it did.
        deployment_id: What a worker starts the run again from, if there is one.
        pool: The work pool whose worker started it; None: a person did.
        num_starts: How many processes have begun it so far, this one included. `number` also
            counts every time that one took it back.
    """

    run_id: UUID
    number: int
    is_redelivered: bool
    was_cancelled: bool
    earlier: Earlier
    deployment_id: UUID | None
    pool: str | None = None
    num_starts: int = 1


def delivery_of(run_id: UUID | str) -> Delivery:
    """Tell why this process was started for the run.

    Args:
        run_id: A flow run that is Running in this process.
    """
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(str(run_id)))
        states = sorted(client.read_flow_run_states(run.id), key=attrgetter("timestamp"))
    is_redelivered, was_cancelled = _why_started(states)
    return Delivery(
        run_id=run.id,
        number=run.run_count,
        is_redelivered=is_redelivered,
        was_cancelled=was_cancelled,
        earlier=earlier_of(
            dict(run.labels), num_processes=run.run_count - 1, is_redelivered=is_redelivered
        ),
        deployment_id=run.deployment_id,
        pool=run.work_pool_name,
        num_starts=_num_starts(states),
    )


def is_begun_again(client: SyncPrefectClient, run_id: UUID, num_starts: int) -> bool:
    """Tell whether another process has begun the run since it had begun `num_starts` times."""
    return _num_starts(client.read_flow_run_states(run_id)) > num_starts


def began_at(states: Sequence[State]) -> datetime | None:
    """Return when the latest pass of a run was asked for; None if it was started at once.

    Args:
        states: All its states. Not their start time: the server keeps that of the first pass.
    """
    asked = [state.timestamp for state in states if _asks_for_a_process(state)]
    return max(asked, default=None)


def count_of_pass(states: Sequence[State]) -> int:
    """Return how often a run had become Running when its latest process began it.

    Args:
        states: All states of a run that is Running. What Prefect calls `flow_run_run_count` of a
            task run is this if the latest pass has begun it: its process reads the count once, so
            that neither the clocks of workers count nor how often it took the run back.
    """
    running = [state for state in sorted(states, key=attrgetter("timestamp")) if state.is_running()]
    begun = (number for number, state in enumerate(running, 1) if not _is_taken_back(state))
    return max(begun, default=0)


def keep_tally(run_id: UUID | str, tally: Tally) -> None:
    """Have the server keep what was counted of a run."""
    with get_client(sync_client=True) as client:
        _keep(client, UUID(str(run_id)), tally.labels())


@contextmanager
def holding(
    delivery: Delivery, tally: Tally, *, is_restartable: bool, poll_s: float = _POLL_S
) -> Iterator[None]:
    """Hold on to the run until the block ends.

    A server that was away for long finds that it heard nothing of a run and calls it Crashed. While
    its process lives, it takes the run back. If another process was started for the run by then,
    this one ends at once and without a word, since the run is no longer its own; what it started
    ends with it. A run that is cancelled while no worker looks after it is ended by SIGTERM.

    What is counted meanwhile is told to the server, again and again until it has heard it.

    Args:
        delivery: The start of this process.
        tally: What it counts; the server knows what is in it so far.
        is_restartable: Whether the run is to be started again if this process is killed.
        poll_s: How long to wait between looks at the run; 3.6 times that while for two minutes
            nothing was wrong.
    """
    holder = _Holder(delivery, tally, is_restartable=is_restartable)
    with get_client(sync_client=True) as client:
        holder.ask_for_restart(client)
    is_done = threading.Event()
    thread = background_thread(partial(holder.watch, is_done, poll_s), "trainjob-holder")
    # A temporary server lives no longer than this process: nobody else could have the run.
    is_shared = bool(PREFECT_API_URL.value())
    try:
        if is_shared:
            thread.start()  # in here: a signal handler may raise while it waits for the thread
        yield
    finally:
        is_done.set()
        tally.changed.set()
        if not is_shared:
            thread.start()  # what was counted is told even so, for whoever sees the run later
        if thread.is_alive():
            thread.join(poll_s)  # a server that hangs must not hold up the end


class _Holder:
    """Looks at the run in the name of one process of it."""

    def __init__(self, delivery: Delivery, tally: Tally, *, is_restartable: bool) -> None:
        self._tally = tally
        self._told = tally.labels()
        self._run_id = delivery.run_id
        self._number = delivery.number
        self._deployment_id = delivery.deployment_id
        self._is_restartable = is_restartable and delivery.deployment_id is not None
        self._has_asked = not self._is_restartable
        self._cancelled_at: float | None = None
        self._troubled_at = time.monotonic()

    def ask_for_restart(self, client: SyncPrefectClient) -> None:
        """Say that the run is to be started again if it crashes; it holds for one crash."""
        if self._has_asked:
            return
        resource = Resource(
            {
                "prefect.resource.id": f"prefect.flow-run.{self._run_id}",
                "prefect.run-count": str(self._number),  # as in the events of its states
            }
        )
        deployment = RelatedResource(
            {
                "prefect.resource.id": f"prefect.deployment.{self._deployment_id}",
                "prefect.resource.role": "deployment",
            }
        )
        event = Event(event=RESTARTABLE_EVENT, resource=resource, related=[deployment])
        # Not by emit_event: a background thread would send it, and may not get to it.
        client.request("POST", "/events", json=[event.model_dump(mode="json")])
        self._has_asked = True

    def watch(self, is_done: threading.Event, poll_s: float) -> None:
        """Look at the run again and again until it is done or gone, at once if something counts."""
        # The client's own retries wait for up to half a minute, in which the run may be given away.
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True) as client,
            suppress(ObjectNotFound),
        ):
            while not is_done.is_set():
                self._tally.changed.wait(self._pause_s(poll_s))
                self._tally.changed.clear()
                self._is_answered(partial(self._look, client, is_done))
            give_up_at = time.monotonic() + _LAST_WORD_S
            while not self._is_answered(partial(self._tell_tally, client)):
                if time.monotonic() > give_up_at:
                    return
                time.sleep(_LAST_WORD_PAUSE_S)

    def _is_answered(self, ask: Callable[[], None]) -> bool:
        """Ask the server something; return whether it has answered."""
        try:
            ask()
        except httpx.HTTPError as error:
            self._troubled_at = time.monotonic()
            _logger.debug("the server does not answer: %s", error)
            return False
        return True

    def _look(self, client: SyncPrefectClient, is_done: threading.Event) -> None:
        run = client.read_flow_run(self._run_id)
        if is_done.is_set():
            return
        self._look_at(run, client)
        self.ask_for_restart(client)
        self._tell_tally(client, run)

    def _tell_tally(self, client: SyncPrefectClient, run: FlowRun | None = None) -> None:
        """Have the server keep what was counted since it was told last.

        Args:
            client: Asks the server.
            run: The run as the server has it now; absent: it is asked if there is something new.
        """
        labels = self._tally.labels()
        if labels == self._told:
            return
        known = run or client.read_flow_run(self._run_id)
        if known.run_count <= self._number:  # what another process of it counts must stand
            _keep(client, self._run_id, labels)
        self._told = labels

    def _pause_s(self, poll_s: float) -> float:
        is_calm = time.monotonic() - self._troubled_at > _CALM_AFTER_S
        return poll_s * _CALM_FACTOR if is_calm else poll_s

    def _look_at(self, run: FlowRun, client: SyncPrefectClient) -> None:
        state = run.state
        if state is None:
            return
        if not state.is_running():
            self._troubled_at = time.monotonic()
        if run.run_count > self._number or state.is_pending():
            _logger.warning("run=%s is run by another process now; this one ends", self._run_id)
            # An exit code of 0 is the only end that the worker does not report as the run's.
            os._exit(0)
        if state.is_crashed() or state.is_scheduled():
            self._take_back(client, state)
        if state.is_cancelling():
            self._cancel_unattended()

    def _cancel_unattended(self) -> None:
        now = time.monotonic()
        if self._cancelled_at is None:
            self._cancelled_at = now
        elif now - self._cancelled_at > _UNATTENDED_CANCEL_S:
            self._cancelled_at = math.inf
            _logger.warning("run=%s is cancelled and no worker ends it", self._run_id)
            os.kill(os.getpid(), signal.SIGTERM)

    def _take_back(self, client: SyncPrefectClient, lost: State) -> None:
        message = f"{_TAKEN_BACK}; it was {lost.name}: {lost.message}"
        client.set_flow_run_state(self._run_id, Running(message=message))
        self._number += 1  # the server counts every time that a run becomes Running
        self._has_asked = not self._is_restartable
        _logger.warning("run=%s taken back: %s", self._run_id, message)


def _why_started(states: list[State]) -> tuple[bool, bool]:
    """Return whether the run was delivered again, and whether it was being cancelled before.

    Args:
        states: All states of the run, in their order, up to now.
    """
    # Not a state since the last end: a crash may be reported while the next process starts.
    asked = [index for index, state in enumerate(states) if _asks_for_a_process(state)]
    if not asked or states[asked[-1]].name != AWAITING_RESTART:
        return False, False
    before = takewhile(lambda state: not state.is_scheduled(), reversed(states[: asked[-1]]))
    return True, any(state.is_cancelling() or state.is_cancelled() for state in before)


def _num_starts(states: Sequence[State]) -> int:
    """Return how many processes have begun the run."""
    return sum(state.is_running() and not _is_taken_back(state) for state in states)


def _is_taken_back(state: State) -> bool:
    return (state.message or "").startswith(_TAKEN_BACK)


def _asks_for_a_process(state: State) -> bool:
    return state.is_scheduled() and state.name != _LATE


def _keep(client: SyncPrefectClient, run_id: UUID, labels: dict[str, int]) -> None:
    client.update_flow_run_labels(run_id, dict(labels))
