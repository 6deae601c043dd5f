"""Calls a url of the platform's when something becomes of a run: automations of Prefect.

One for each event that people subscribe to, so that each can be switched off in the UI, and a
saved block that has the url, which may be a secret: it is shown by neither the automations nor
`deployments.register`, which is the caller.
"""

import json
from collections.abc import Mapping
from datetime import timedelta
from urllib.parse import urlsplit

from prefect.automations import (
    AutomationCore,
    CallWebhook,
    CompoundTrigger,
    EventTrigger,
    Posture,
)
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import BlockDocument
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from deployments.automations import ANY_RUN, OUR_FLOWS, register_automation
from deployments.changes import Change
from flows.delivery import AWAITING_RESTART, RESTART_PENDING
from flows.run_end import GOOD_STATES
from flows.run_events import RESTARTED_EVENT, STALLED_EVENT
from flows.server import without_password
from flows.tally import RESTARTS_LABEL
from trainjob.errors import TrainjobError

OFF = "off"
"""What is given in place of a url to have nothing called any more."""

_BLOCK = "trainjob-events"
_BLOCK_TYPE = Webhook.get_block_type_slug()
_WHAT = f"webhook block {_BLOCK!r}"
_HEADERS = {"Content-Type": "application/json"}  # Prefect 3.8 sends none by itself
_RUN = "prefect.flow-run."
_RUN_ID = "prefect.resource.id"
_SETTLED_S = 30.0
"""By then a crashed run that is started again is RestartPending, or its process took it back."""

_WORD_S = 30.0
"""A run that is cancelled says a second later what was saved; a busy server hears that later."""

_MEMORY = timedelta(minutes=10)
"""How long an event is known that was told."""

_SAVING = timedelta(days=7)
"""Longer than a failed run saves: it says that it failed before, and again with what was saved."""

_TEXTS = {
    "job": "flow_run.parameters.job.name | default(flow_run.name, true)",
    "run": "flow_run.name",
    "run_id": f"event.resource['{_RUN_ID}'] | replace('{_RUN}', '')",
    "state": "event.resource['prefect.state-name'] | default(flow_run.state.name, true)",
    "message": "event.resource['prefect.state-message'] | default(event.payload.message, true)",
    "time": "event.occurred.isoformat()",
}
"""What is sent beside the name of the event, in Jinja, as Prefect's server fills it in."""


def check_url(url: str) -> str:
    """Return a url that can be called, or ``off``.

    Raises:
        TrainjobError: If it is none; the message does not have it.
    """
    if url == OFF:
        return url
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        is_url = False
    if not is_url or any(character.isspace() for character in url):
        raise TrainjobError(
            "asked for a webhook, found no url that can be called; write one such as "
            f"https://chat.example.com/hooks/KEY, or {OFF!r} to have none"
        )
    return url


def register_webhook(
    client: SyncPrefectClient, url: str | None, settled_s: float = _SETTLED_S
) -> list[Change]:
    """Have a url called at every event of a run, or none any more.

    Args:
        client: The server to tell.
        url: What to call; ``off``: nothing any more; None: what is called now, if anything is.
        settled_s: How long after a crash a run counts as failed; at least 10.

    Returns:
        What became of the block and of each automation.
    """
    found = _read_block(client)
    if url == OFF:
        return _remove(client, found)
    if url is None and found is None:
        return []
    changes = [_save_block(found, url)]
    block = _read_block(client)
    if block is None:  # somebody has removed it this instant
        return changes
    wanted = webhook_automations(block, settled_s)
    return [*changes, *(register_automation(client, automation) for automation in wanted)]


def webhook_automations(
    block: BlockDocument, settled_s: float = _SETTLED_S
) -> tuple[AutomationCore, ...]:
    """Return an automation for each event that the url of a block is called at.

    Args:
        block: The saved block.
        settled_s: How long after a crash a run counts as failed; at least 10.
    """
    return tuple(
        AutomationCore(
            name=_name(event),
            description=f"Calls the webhook of the block {_BLOCK} with the event {event}.",
            trigger=trigger,
            actions=[CallWebhook(block_document_id=block.id, payload=_payload(event))],
        )
        for event, trigger in _triggers(settled_s).items()
    )


def _triggers(settled_s: float) -> dict[str, EventTrigger | CompoundTrigger]:
    """Return what triggers each event that people subscribe to."""
    completed = {f"{_RUN}{name}" for name, _ in GOOD_STATES.values()}
    goes_on = {f"{_RUN}{name}" for name in (RESTART_PENDING, AWAITING_RESTART, "Running")}
    failed = f"{_RUN}Failed"
    # Failed becomes a crashed run that had failed before, and that is told by itself.
    crashed = _silence({f"{_RUN}Crashed"}, {f"{_RUN}Crashed", failed, *goes_on}, settled_s)
    # Cancelled comes again with what was saved: what is told is the last word.
    cancelled = {f"{_RUN}Cancelled"}
    return {
        # Running it becomes again, after a restart or an outage of the server.
        "JobStarted": _state({f"{_RUN}Running"}, {"prefect.run-count": "1"}),
        "JobCompleted": _state(completed),
        "JobFailed": CompoundTrigger(
            type="compound",  # said, as within is: Prefect's client leaves out of an update
            within=None,  # what is not, and its server then does not know the trigger (3.8.8)
            require="any",
            triggers=[_state({failed}, known_for=_SAVING), crashed],
        ),
        "JobStopped": _silence(cancelled, cancelled, _WORD_S),
        "JobRestarted": _event_of_ours(RESTARTED_EVENT),
        "JobStalled": _event_of_ours(STALLED_EVENT),
    }


def _state(
    names: set[str], labels: Mapping[str, str] | None = None, known_for: timedelta = _MEMORY
) -> EventTrigger:
    return EventTrigger(
        posture=Posture.Reactive,
        expect=names,
        match={**ANY_RUN, **(labels or {})},
        match_related=OUR_FLOWS,
        # Once for each process of a run: an event that met a locked database comes again.
        for_each={_RUN_ID, "prefect.run-count"},
        within=known_for,
    )


def _event_of_ours(name: str) -> EventTrigger:
    return EventTrigger(
        posture=Posture.Reactive,
        expect={name},
        match=ANY_RUN,
        for_each={_RUN_ID, RESTARTS_LABEL},
        within=_MEMORY,
    )


def _silence(after: set[str], expect: set[str], within_s: float) -> EventTrigger:
    """Return what is triggered when nothing that is expected follows; it has the last event."""
    return EventTrigger(
        posture=Posture.Proactive,
        after=after,
        expect=expect,
        match=ANY_RUN,
        match_related=OUR_FLOWS,
        for_each={_RUN_ID},
        within=timedelta(seconds=within_s),
    )


def _name(event: str) -> str:
    return f"trainjob: tell the webhook {event}"


def _payload(event: str) -> str:
    fields = {
        key: f"{{{{ {value} | default('', true) | tojson }}}}" for key, value in _TEXTS.items()
    }
    ui = without_password(get_current_settings().ui_url or "").rstrip("/")
    fields["url"] = f"{{{{ ('{ui}/runs/flow-run/' ~ flow_run.id) | tojson }}}}"
    lines = [f'"event": {json.dumps(event)}', *(f'"{key}": {text}' for key, text in fields.items())]
    return "{\n  " + ",\n  ".join(lines) + "\n}"


def _read_block(client: SyncPrefectClient) -> BlockDocument | None:
    try:
        return client.read_block_document_by_name(_BLOCK, _BLOCK_TYPE, include_secrets=True)
    except ObjectNotFound:
        return None


def _save_block(found: BlockDocument | None, url: str | None) -> Change:
    if found is not None and url in (None, found.data.get("url")):
        return Change("left", _WHAT)
    Webhook(url=url, headers=_HEADERS).save(_BLOCK, overwrite=True)
    return Change("created" if found is None else "changed", _WHAT)


def _remove(client: SyncPrefectClient, found: BlockDocument | None) -> list[Change]:
    changes = []
    for event in _triggers(_SETTLED_S):
        for automation in client.read_automations_by_name(_name(event)):
            client.delete_automation(automation.id)
            changes.append(Change("removed", f"automation {automation.name!r}"))
    if found is not None and found.id is not None:
        client.delete_block_document(found.id)
        changes.append(Change("removed", _WHAT))
    return changes or [Change("left", _WHAT, "there is none")]
