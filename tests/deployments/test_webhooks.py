"""The webhook of the platform: registered once, kept, changed, removed; its url is shown nowhere.

That it is called, and with what, is told by `tests/e2e/test_events.py`.
"""

import io
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import pytest
from prefect.automations import CompoundTrigger, EventTrigger
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import BlockDocument, FlowRun
from prefect.events import Event, RelatedResource, Resource
from prefect.states import Scheduled

from deployments import register
from deployments.webhooks import check_url, register_webhook, webhook_automations
from flows.training_job import training_job
from tests.waiting import wait_until
from trainjob.errors import TrainjobError

URL = "https://chat.example.com/hooks/not-for-everyone"
EVENTS = ["JobCompleted", "JobFailed", "JobRestarted", "JobStalled", "JobStarted", "JobStopped"]


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """Give a client of a server without a webhook."""
    with get_client(sync_client=True) as client:
        yield client
        register_webhook(client, "off")


def lines(client: SyncPrefectClient, url: str | None, settled_s: float = 30.0) -> list[str]:
    return [str(change) for change in register_webhook(client, url, settled_s)]


def saved_url() -> str:
    block = Webhook.load("trainjob-events")
    assert isinstance(block, Webhook)
    return block.url.get_secret_value()


def called_at(client: SyncPrefectClient) -> list[str]:
    """Return the events that the webhook is called at."""
    names = [automation.name for automation in client.read_automations()]
    return sorted(name.rpartition(" ")[2] for name in names if "tell the webhook" in name)


def test_a_webhook_is_kept_by_a_registration_that_does_not_name_it(
    client: SyncPrefectClient,
) -> None:
    first = lines(client, URL)
    again = lines(client, URL)
    unnamed = lines(client, None)

    assert called_at(client) == EVENTS
    assert {line.split()[0] for line in first} == {"created"}
    assert first[0] == "created  webhook block 'trainjob-events'"
    assert [line[9:] for line in first] == [line[9:] for line in again]
    assert {line.split()[0] for line in [*again, *unnamed]} == {"left"}
    assert saved_url() == URL


def test_another_url_changes_the_block_and_leaves_the_automations(
    client: SyncPrefectClient,
) -> None:
    lines(client, URL)

    changed = lines(client, f"{URL}-2")

    assert changed[0] == "changed  webhook block 'trainjob-events'"
    assert {line.split()[0] for line in changed[1:]} == {"left"}
    assert saved_url() == f"{URL}-2"


def test_an_automation_that_should_be_another_is_updated_in_place(
    client: SyncPrefectClient,
) -> None:
    lines(client, URL)

    changed = lines(client, None, settled_s=10.0)

    words = {line.split()[-1].strip("'"): line.split()[0] for line in changed}
    assert {name for name, verb in words.items() if verb == "changed"} == {"JobFailed"}


def test_without_a_webhook_nothing_is_made_and_nothing_is_said(client: SyncPrefectClient) -> None:
    assert lines(client, None) == []
    assert lines(client, "off") == ["left     webhook block 'trainjob-events': there is none"]
    assert called_at(client) == []


def test_a_crash_is_not_told_of_a_run_that_its_finisher_calls_failed() -> None:
    """It had failed by itself and was killed while it saved; that it failed is told already."""
    ids = {key: uuid4() for key in ("id", "block_schema_id", "block_type_id")}
    block = BlockDocument(name="hook", data={}, **ids)
    [told] = [found for found in webhook_automations(block) if found.name.endswith("JobFailed")]
    assert isinstance(told.trigger, CompoundTrigger)
    [crashed] = [
        trigger
        for trigger in told.trigger.triggers
        if isinstance(trigger, EventTrigger) and "prefect.flow-run.Crashed" in trigger.after
    ]

    assert "prefect.flow-run.Failed" in crashed.expect


def test_a_failed_run_is_told_once_however_long_its_results_are_saved(
    client: SyncPrefectClient,
) -> None:
    """It is called Failed at once by who saves for it, and again with what was saved."""
    with listener() as (url, heard):
        lines(client, url)
        first, last = failed_run(client), failed_run(client)
        now = datetime.now(UTC)

        tell_failed(client, first, now - timedelta(hours=5))
        wait_until(lambda: str(first.id) in heard)
        tell_failed(client, first, now)
        tell_failed(client, last, now)
        wait_until(lambda: str(last.id) in heard)  # the server takes one event after the other

    assert heard == [str(first.id), str(last.id)]


@contextmanager
def listener() -> Iterator[tuple[str, list[str]]]:
    """Give a url that can be called, and the runs that it was told of."""
    heard: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.append(body["run_id"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", heard
        finally:
            server.shutdown()
            thread.join()


def failed_run(client: SyncPrefectClient) -> FlowRun:
    return client.create_flow_run(training_job, parameters={"job": {}}, state=Scheduled())


def tell_failed(client: SyncPrefectClient, run: FlowRun, occurred: datetime) -> None:
    """Tell the server that the first process of a run has failed at some time."""
    resource = {
        "prefect.resource.id": f"prefect.flow-run.{run.id}",
        "prefect.state-name": "Failed",
        "prefect.run-count": "1",
    }
    flow = {
        "prefect.resource.id": f"prefect.flow.{run.flow_id}",
        "prefect.resource.role": "flow",
        "prefect.resource.name": training_job.name,
    }
    event = Event(
        event="prefect.flow-run.Failed",
        occurred=occurred,
        resource=Resource(resource),
        related=[RelatedResource(flow)],
    )
    client.request("POST", "/events", json=[event.model_dump(mode="json")])


def test_off_removes_the_webhook_with_its_automations(client: SyncPrefectClient) -> None:
    lines(client, URL)

    removed = lines(client, "off")

    assert len(removed) == len(EVENTS) + 1
    assert {line.split()[0] for line in removed} == {"removed"}
    assert called_at(client) == []
    assert lines(client, None) == []


@pytest.mark.parametrize(
    "url", ["not-for-everyone", "ftp://a/not-for-everyone", "https://", "http://a:b/not-for", "a b"]
)
def test_what_is_no_url_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(TrainjobError) as refused:
        check_url(url)

    assert "found no url that can be called; write one such as https://" in str(refused.value)
    assert "not-for" not in str(refused.value)


def test_a_url_may_come_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Arguments can be seen by all users of a machine."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("not-for-everyone\n"))

    assert register.main(["--webhook", "-"]) == 1

    assert "PREFECT_API_URL" not in os.environ
    assert "found no url that can be called" in capsys.readouterr().err
