"""What the server does by itself with a run whose process died: automations of Prefect.

Prefect's worker reports a killed flow process as Crashed, twice within about a second, and leaves
the run at that; when the worker dies too, nobody reports anything. Automations make of both cases a
run that a worker starts again under its old id, if its process had asked for that
(`flows.delivery`), and otherwise one that says what happened. Registered by `deployments.register`.
A run that is cancelled and has no process is ended by a service of Prefect's own, which looks at
the run: an automation would not, and take the last word of one that has ended.
"""

from datetime import timedelta

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.settings import get_current_settings

from deployments.changes import Change
from deployments.flow_deployments import heartbeat_in_file
from flows.delivery import AWAITING_RESTART, RESTART_PENDING, RESTARTABLE_EVENT
from flows.run_end import GOOD_STATES
from trainjob.values import format_duration

_RETIRED = ("trainjob: end cancelled runs without a process",)
"""Names of automations of earlier releases that would do harm (docs/decisions/0013)."""

_FLOWS = ["training-job"]
_NUM_MISSED_HEARTBEATS = 3
_LONGER_THAN_ANY_RUN = timedelta(days=366)
_HOLD_S = 20.0
"""How long a worker mostly takes for its second report: 1 s, and 26 s on a busy machine."""

_NEVER_BEGAN = timedelta(minutes=10)
"""How long a worker may take to start a process, which it mostly does in seconds."""

_HEARTBEAT = "prefect.flow-run.heartbeat"
_RUNNING = "prefect.flow-run.Running"
_CRASHED = "prefect.flow-run.Crashed"
_AWAITING_RESTART = f"prefect.flow-run.{AWAITING_RESTART}"
_CANCELLING = "prefect.flow-run.Cancelling"
_STARTING = {f"prefect.flow-run.{name}" for name in ("Pending", "Submitting")}
_WAITING = {
    f"prefect.flow-run.{name}"
    for name in ("Scheduled", "Late", "AwaitingConcurrencySlot", "AwaitingRetry", AWAITING_RESTART)
}
_PROCESS_POOLS: dict[str, str | list[str]] = {
    "prefect.resource.role": "work-pool",
    "prefect.work-pool.type": "process",
}
# By the names of the states, of which more than one is of the type Completed.
_OWN_WORD = {
    f"prefect.flow-run.{name}"
    for name in ("Failed", "Cancelled", *(name for name, _ in GOOD_STATES.values()))
}
_RUN_ID = "prefect.resource.id"
ANY_RUN: dict[str, str | list[str]] = {_RUN_ID: "prefect.flow-run.*"}
OUR_FLOWS: dict[str, str | list[str]] = {
    "prefect.resource.role": "flow",
    "prefect.resource.name": _FLOWS,
}
_ANY_DEPLOYMENT: dict[str, str | list[str]] = {
    "prefect.resource.role": "deployment",
    _RUN_ID: "prefect.deployment.*",
}


def default_dead_after_s() -> float:
    """Return how long nothing is heard of a run that is dead: three heartbeats of a flow.

    Counted by ``PREFECT_FLOWS_HEARTBEAT_FREQUENCY`` if that is set here, and otherwise by what
    prefect.yaml gives its runs: these have that wherever they are registered from.
    """
    flows = get_current_settings().flows
    is_set = "heartbeat_frequency" in flows.model_fields_set
    heartbeat_s = flows.heartbeat_frequency if is_set else None
    return float(_NUM_MISSED_HEARTBEATS * (heartbeat_s or heartbeat_in_file()))


def automations(dead_after_s: float, hold_s: float = _HOLD_S) -> tuple[AutomationCore, ...]:
    """Return the automations as they should be.

    Args:
        dead_after_s: How long nothing is heard of a run until it counts as dead; more than the
            interval of heartbeats, and at least 10.
        hold_s: How long a crashed run is held before it is started again; at least 10.
    """
    dead_after = timedelta(seconds=dead_after_s)
    return (
        _notice_dead_runs(dead_after),
        _notice_runs_that_never_began(),
        _hold_crashed_runs(),
        _hold_runs_reported_late(),
        _redeliver_crashed_runs(timedelta(seconds=hold_s)),
    )


def register_automations(
    client: SyncPrefectClient, dead_after_s: float, hold_s: float = _HOLD_S
) -> list[Change]:
    """Create the automations that are missing and update those that are not as they should be.

    One that a person has disabled stays disabled. Those of earlier releases that are not wanted any
    more are deleted.

    Args:
        client: The server to tell.
        dead_after_s: As for `automations`.
        hold_s: As for `automations`.

    Returns:
        What became of each.
    """
    wanted = automations(dead_after_s, hold_s)
    removed = [change for name in _RETIRED for change in _remove(client, name)]
    return [*removed, *(register_automation(client, automation) for automation in wanted)]


def register_automation(client: SyncPrefectClient, wanted: AutomationCore) -> Change:
    """Create an automation that is missing, or update one that is not as it should be."""
    what = f"automation {wanted.name!r}"
    found = client.read_automations_by_name(wanted.name)
    if not found:
        client.create_automation(wanted)
        return Change("created", what)
    current = AutomationCore(**found[0].model_dump(exclude={"id"}))
    switched = [] if current.enabled else ["a person has disabled it"]
    kept = wanted.model_copy(update={"enabled": current.enabled})
    # An update makes the server forget which runs have asked for a restart.
    if current == kept:
        return Change("left", what, *switched)
    client.update_automation(found[0].id, kept)
    return Change("changed", what, "; ".join([*_other_time(current, kept), *switched]))


def _other_time(old: AutomationCore, new: AutomationCore) -> list[str]:
    """Say how long a trigger waited and waits now, if that is what was changed."""
    times = [getattr(automation.trigger, "within", None) for automation in (old, new)]
    if None in times or times[0] == times[1]:
        return []
    return [" -> ".join(f"{time.total_seconds():g} s" for time in times if time is not None)]


def _remove(client: SyncPrefectClient, name: str) -> list[Change]:
    found = client.read_automations_by_name(name)
    for automation in found:
        client.delete_automation(automation.id)
    return [Change("removed", f"automation {name!r}", "no release since needs it") for _ in found]


def _notice_dead_runs(dead_after: timedelta) -> AutomationCore:
    silence = f"nothing was heard of its process for {dead_after.total_seconds():g} s"
    return AutomationCore(
        name="trainjob: notice dead runs",
        description="Calls a run Crashed of whose process nothing was heard for a while.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            # Running: a process that takes its run back and dies has no heartbeat in between. In
            # both, since what ended the watch before would otherwise end the new one as well.
            after={_HEARTBEAT, _RUNNING},
            # Crashed and RestartPending are left to the triggers below: an event is dropped for
            # all of them if one cannot take it in. What is Crashed does not become so again.
            expect={_HEARTBEAT, _RUNNING, _CANCELLING, _AWAITING_RESTART, *_OWN_WORD},
            match=ANY_RUN,
            match_related=OUR_FLOWS,
            for_each={_RUN_ID},
            within=dead_after,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"{silence}: the process, its machine or the way to it is gone",
            )
        ],
    )


def _notice_runs_that_never_began() -> AutomationCore:
    return AutomationCore(
        name="trainjob: notice runs that never began",
        description="Calls a run Crashed that a worker took and that no process of it began.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after=_STARTING,
            # Not Crashed, nor what else ends a run, for the reason above: that it is called Crashed
            # once more, the server refuses.
            expect={_RUNNING, *_STARTING, *_WAITING},
            match=ANY_RUN,
            # Of a container, an image may have to be fetched, or a cluster has to find room.
            match_related=[OUR_FLOWS, _PROCESS_POOLS],
            for_each={_RUN_ID},
            within=_NEVER_BEGAN,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"a worker took it {format_duration(_NEVER_BEGAN)} ago, and no process of "
                "it began: the worker or its machine is gone; retry the run",
            )
        ],
    )


def _hold_crashed_runs() -> AutomationCore:
    return AutomationCore(
        name="trainjob: hold crashed runs for a restart",
        description="Holds a crashed run, if it asked for restarts, until its worker is done.",
        trigger=_crashed_after_asking(for_each={_RUN_ID}, times=1),
        actions=[_hold()],
    )


def _hold_runs_reported_late() -> AutomationCore:
    return AutomationCore(
        name="trainjob: hold runs that are reported late",
        description="Holds a run again whose worker reports the same crash after the hold.",
        # By the count of its processes, so that the crash of the next one is not taken for it.
        trigger=_crashed_after_asking(for_each={_RUN_ID, "prefect.run-count"}, times=2),
        actions=[_hold()],
    )


def _crashed_after_asking(for_each: set[str], times: int) -> EventTrigger:
    return EventTrigger(
        posture=Posture.Reactive,
        # Crashed is in both, so that the server writes before it reads: with SQLite, 3.8.8
        # drops an event if another writer comes between its reading and its writing.
        after={RESTARTABLE_EVENT, _CRASHED},
        expect={_CRASHED},
        match=ANY_RUN,
        match_related=_ANY_DEPLOYMENT,  # without one, nobody could start the run again
        for_each=for_each,
        threshold=times,
        within=_LONGER_THAN_ANY_RUN,
    )


def _hold() -> ChangeFlowRunState:
    # Still a Crashed state: of any other the worker's second report would make one again.
    return ChangeFlowRunState(
        state=StateType.CRASHED,
        name=RESTART_PENDING,
        message="its process was killed; it is started again in a moment",
        force=True,
    )


def _redeliver_crashed_runs(hold: timedelta) -> AutomationCore:
    return AutomationCore(
        name="trainjob: re-deliver crashed runs",
        description="Has a worker start a held run again, under the same id.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={f"prefect.flow-run.{RESTART_PENDING}"},
            expect={"prefect.flow-run.*"},
            match=ANY_RUN,
            for_each={_RUN_ID},
            within=hold,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.SCHEDULED,
                name=AWAITING_RESTART,
                message="its process was killed; the next free worker starts it again",
            )
        ],
    )
