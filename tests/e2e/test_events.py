"""What starts runs by itself and who is told of them, on a real server with a worker.

Everything is begun at once, since each of it waits for the server most of its time.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from prefect.automations import AutomationCore
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Cancelling, Crashed, Failed, Pending, Running, Scheduled

from deployments import automations
from deployments.automations import register_automation
from deployments.webhooks import register_webhook
from flows.__main__ import main
from flows.new_versions import announce_version
from flows.registry_place import chosen_registry
from tests.jobs import COPY_SCRIPT, make_job, write_job
from tests.serving import Serve
from tests.waiting import PATIENCE_S, wait_until
from trainjob.registry.records import Reference, SavedDataset

ROOT = Path(__file__).parents[2]
SHORTEST_S = 10.0  # of what Prefect waits for in vain
CANCELLING_TIMEOUT = "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS"
KEY = "not-for-everyone"
LAST_WORD = "Saved: everything"
STALLS_ONCE = """\
import pathlib, time
mark = pathlib.Path({mark!r})
if not mark.exists():
    mark.touch()
    time.sleep(600)
"""
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]


class Listener(ThreadingHTTPServer):
    """Keeps what is posted to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heard: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/hooks/{KEY}"


class _Handler(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Type"] == "application/json"
        self.server.heard.append({"path": self.path, **json.loads(body)})
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@dataclass
class Begun:
    """What was begun on the server."""

    serve: Serve
    folder: Path
    listener: Listener
    said: str
    runs: dict[str, UUID] = field(default_factory=dict)

    def told(self, name: str) -> list[str]:
        """Return the events of a run that the webhook was told."""
        run_id = str(self.runs[name])
        return [told["event"] for told in self.listener.heard if told["run_id"] == run_id]

    def body(self, name: str, event: str) -> dict[str, Any]:
        """Return what the webhook was told of an event of a run."""
        run_id = str(self.runs[name])
        [found] = [
            told
            for told in self.listener.heard
            if (told["run_id"], told["event"]) == (run_id, event)
        ]
        return found

    def wait_until_told(self, name: str, *events: str) -> None:
        # Those of the same moment come in any order.
        self.wait_until(lambda: sorted(self.told(name)) == sorted(events))

    def wait_until(self, condition: Callable[[], object]) -> None:
        wait_until(condition, said=lambda: (self.runs, self.listener.heard))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begun]:
    """Begin everything on a server whose waits are as short as they can be."""
    folder = tmp_path_factory.mktemp("events")
    listener = Listener()
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINJOB_REGISTRY", "prefect")
        patch.setenv(CANCELLING_TIMEOUT, str(SHORTEST_S))
        serve = Serve(tmp_path_factory.mktemp("serve"))
        url = f"http://127.0.0.1:{serve.port}/api"
        try:
            serve.wait_until_ready()
            said = registered(url, listener.url)
            story = Begun(serve, folder, listener, said)
            with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
                register_webhook(client, None, settled_s=SHORTEST_S)
                begin(story, client)
                yield story
        finally:
            serve.process.send_signal(signal.SIGTERM)
            serve.process.wait(PATIENCE_S)
            listener.shutdown()
            listener.server_close()
    assert serve.process.returncode == 0, serve.log.read_text()
    assert not serve.answers()


@pytest.fixture
def client(begun: Begun) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def registered(url: str, webhook: str) -> str:
    """Register with a webhook, whose url comes from standard input; return what was said."""
    done = subprocess.run(
        [sys.executable, "-m", "deployments.register", "--webhook", "-"],
        cwd=ROOT,
        env=os.environ | {"PREFECT_API_URL": url},
        input=f"{webhook}\n",
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


def begin(begun: Begun, client: SyncPrefectClient) -> None:
    """Begin all that the tests wait for."""
    deployment = client.read_deployment_by_name("training-job/cpu")

    def run_that_was(name: str, *states: State[Any]) -> None:
        first, *others = states
        run = client.create_flow_run_from_deployment(
            deployment.id, parameters={"job": make_job(begun.folder / name, name=name)}, state=first
        )
        begun.runs[name] = run.id
        for state in others:
            client.set_flow_run_state(run.id, state)

    script = STALLS_ONCE.format(mark=str(begun.folder / "stalled-once")) + COPY_SCRIPT
    limits = {"stall": "6s", "auto_restart": 1, "grace": "1s"}
    job = make_job(begun.folder / "stalls", script, name="stalls", limits=limits)
    stalls = client.create_flow_run_from_deployment(deployment.id, parameters={"job": job})
    begun.runs["stalls"] = stalls.id
    # Before the server has more to do: its last word must come soon after the one before.
    stopped: tuple[State[Any], ...] = (Cancelling(), Cancelled(), Cancelled(message=LAST_WORD))
    run_that_was("is-stopped", Pending(), Running(), *stopped)
    run_that_was("fails", Pending(), Running(), Failed(message='a rank <1> said "no"'))
    run_that_was("taken-back", Pending(), Running(), Crashed(), Running())
    run_that_was("unattended", Pending(), Running(), Cancelling())
    # After "taken-back", whose test waits for what is told of this one.
    run_that_was("never-begins", Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1)))
    register_automation(client, soon_noticed(begun.runs["never-begins"]))
    client.set_flow_run_state(begun.runs["never-begins"], Pending(), force=True)


def soon_noticed(run_id: UUID) -> AutomationCore:
    """Return the automation on runs that never begin, for one run and not for slow machines."""
    as_it_is = automations._notice_runs_that_never_began()
    changes = {
        "match": {"prefect.resource.id": f"prefect.flow-run.{run_id}"},
        "within": timedelta(seconds=SHORTEST_S),
    }
    trigger = as_it_is.trigger.model_copy(update=changes)
    return as_it_is.model_copy(update={"name": "soon noticed", "trigger": trigger})


def test_a_run_that_stalls_and_is_restarted_is_told_from_its_start_to_its_end(
    begun: Begun,
) -> None:
    begun.wait_until_told("stalls", "JobStarted", "JobStalled", "JobRestarted", "JobCompleted")

    assert begun.told("stalls")[0] == "JobStarted"
    assert begun.told("stalls")[-1] == "JobCompleted"
    completed = begun.body("stalls", "JobCompleted")
    assert (completed["job"], completed["state"]) == ("stalls", "Completed")
    assert completed["message"] == "every output is in its store and verified"
    assert completed["run"].startswith("stalls-2")
    ui = f"http://127.0.0.1:{begun.serve.port}"
    assert completed["url"] == f"{ui}/runs/flow-run/{begun.runs['stalls']}"
    assert datetime.fromisoformat(completed["time"]) <= datetime.now(UTC)
    assert "6s" in begun.body("stalls", "JobStalled")["message"]
    assert begun.body("stalls", "JobRestarted")["message"].startswith("1 restart so far: ")


def test_a_failed_run_is_told_with_its_message_as_it_is(begun: Begun) -> None:
    begun.wait_until_told("fails", "JobStarted", "JobFailed")

    told = begun.body("fails", "JobFailed")
    assert (told["state"], told["message"]) == ("Failed", 'a rank <1> said "no"')


def test_a_run_that_is_stopped_is_told_once_with_its_last_word(begun: Begun) -> None:
    begun.wait_until_told("is-stopped", "JobStarted", "JobStopped")

    assert begun.body("is-stopped", "JobStopped")["message"] == LAST_WORD


def test_a_run_that_no_process_begins_is_crashed_and_told_to_have_failed(
    begun: Begun, client: SyncPrefectClient
) -> None:
    begun.wait_until_told("never-begins", "JobFailed")

    told = begun.body("never-begins", "JobFailed")
    assert told["state"] == "Crashed"
    assert "no process of it began" in told["message"]
    state = client.read_flow_run(begun.runs["never-begins"]).state
    assert state is not None
    assert state.is_crashed()


def test_a_crash_that_its_process_takes_back_is_no_failure(begun: Begun) -> None:
    begun.wait_until_told("never-begins", "JobFailed")  # began after it, and waits for longer
    begun.wait_until(lambda: begun.told("taken-back"))

    assert begun.told("taken-back") == ["JobStarted"]


def test_a_cancelled_run_without_a_process_is_ended_and_told(begun: Begun) -> None:
    begun.wait_until_told("unattended", "JobStarted", "JobStopped")

    assert begun.body("unattended", "JobStopped")["state"] == "Cancelled"


def test_the_url_of_the_webhook_is_nowhere_to_be_seen(
    begun: Begun, client: SyncPrefectClient
) -> None:
    begun.wait_until_told("fails", "JobStarted", "JobFailed")

    shown = client.request("POST", "/automations/filter", json={}).text
    blocks = client.request("POST", "/block_documents/filter", json={}).text
    assert "created  webhook block 'trainjob-events'" in begun.said
    assert "tell the webhook JobFailed" in begun.said
    assert {told["path"] for told in begun.listener.heard} == {f"/hooks/{KEY}"}
    for text in (begun.said, shown, blocks, begun.serve.log.read_text()):
        assert KEY not in text


def test_every_kind_of_schedule_yields_runs_at_its_times(
    begun: Begun, client: SyncPrefectClient, tmp_path: Path
) -> None:
    outputs = [{"name": "train_url", "url": "out/{run_id}/"}]
    file = str(write_job(tmp_path, name="scheduled", outputs=outputs))
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    kinds = {
        "by-cron": ["--cron", "0 3 * * *"],
        "by-interval": ["--every", "1d", "--anchor", f"{midnight:%Y-%m-%d}T03:00"],
        "by-rrule": ["--rrule", "FREQ=DAILY;BYHOUR=3;BYMINUTE=0;BYSECOND=0"],
    }

    for name, words in kinds.items():
        assert main(["schedule", file, *words, "--name", name]) == 0

    for name in kinds:
        deployment = client.read_deployment_by_name(f"training-job/{name}").id
        of_this = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
        begun.wait_until(partial(client.read_flow_runs, flow_run_filter=of_this))
        starts = {run.expected_start_time for run in client.read_flow_runs(flow_run_filter=of_this)}
        first = midnight + timedelta(hours=3)
        coming = first if first > datetime.now(UTC) else first + timedelta(days=1)
        assert coming in starts, name
        assert main(["schedule", "delete", name]) == 0


def test_a_new_version_of_a_dataset_starts_a_run_on_exactly_this_version(
    begun: Begun,
    client: SyncPrefectClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRAINJOB_REGISTRY", "prefect")
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, value in ((first, "1"), (second, "33")):
        folder.mkdir()
        (folder / "value.txt").write_text(value)
    assert main(["dataset", "register", "numbers", str(first)]) == 0
    changes: dict[str, Any] = {
        "name": "retrains",
        "description": "{{ left }} as {% it is",
        "inputs": [{"name": "data_url", "dataset": "numbers"}],
        "outputs": [{"name": "train_url", "url": "out/{run_id}/"}],
    }
    file = str(write_job(tmp_path, **changes))
    assert main(["schedule", file, "--on-dataset", "numbers"]) == 0
    deployment = client.read_deployment_by_name("training-job/retrains")
    of_this = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]))

    assert main(["dataset", "register", "others", str(second)]) == 0
    assert main(["dataset", "register", "numbers", str(second)]) == 0
    version = chosen_registry().find("dataset", Reference("numbers", 2))
    announce_version(cast(SavedDataset, version))  # as when the database was locked meanwhile

    def ended() -> bool:
        runs = client.read_flow_runs(flow_run_filter=of_this)
        return bool(runs) and all(run.state and run.state.is_final() for run in runs)

    begun.wait_until(ended)
    [run] = client.read_flow_runs(flow_run_filter=of_this)
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    job = run.parameters["job"]
    assert job["inputs"][0]["dataset"] == "numbers@2"
    assert job["description"] == "{{ left }} as {% it is"
    assert json.loads((tmp_path / f"out/{run.id}/result.json").read_text()) == 66
    assert deployment.parameters["job"]["inputs"][0]["dataset"] == "numbers"
    capsys.readouterr()
    assert main(["schedule", "list"]) == 0
    assert "every new version of the dataset numbers" in capsys.readouterr().out
    assert main(["schedule", "delete", "retrains"]) == 0
    assert "on a new version" not in client.request("POST", "/automations/filter", json={}).text
