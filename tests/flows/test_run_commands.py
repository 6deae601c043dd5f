"""``python -m flows list | show | logs | stop | download``: runs by what people call them."""

import json
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.events import Event, RelatedResource, Resource
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Crashed, Failed, Pending, Running, Scheduled

from flows.__main__ import main
from flows.runs import Chosen, list_runs
from flows.training_job import training_job
from tasks.fetch_code import fetch_code
from tasks.report import report
from tasks.stage_inputs import stage_inputs
from tasks.train import train
from tasks.upload_outputs import upload_outputs
from tests.jobs import make_job
from tests.waiting import wait_until
from trainjob.job import TrainingJob

SCRIPT = """\
import argparse, pathlib
from trainjob import progress
parser = argparse.ArgumentParser()
parser.add_argument("--data_url")
parser.add_argument("--train_url", type=pathlib.Path)
parser.add_argument("--scale", type=int)
args = parser.parse_args()
progress.report(7, loss=float("nan"), accuracy=0.5)
print("scaled by", args.scale, flush=True)
if args.scale < 0:
    raise RuntimeError("scale is negative")
(args.train_url / "weights.txt").write_text("1 2 3")
(args.train_url / "deep").mkdir()
(args.train_url / "deep" / "more.txt").write_text("4")
"""
BEFORE = dict.fromkeys(("stage_inputs", "fetch_code", "inject_hyperparameters"), "Completed")
STAGES = {
    "mended": BEFORE | {"train": "Completed", "upload_outputs": "Completed"},
    "mangled": BEFORE | {"train": "Failed"},
}


@pytest.fixture(scope="module")
def ended(
    prefect_server: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """A run that completed and one that failed, as `show --json` tells them."""
    facts = {}
    with pytest.MonkeyPatch.context() as patch:
        # Prefect's own names of runs have "man" in them now and then, and no numbers.
        for key, name, scale in (("mended", "mended", 2), ("mangled", f"mangled-{uuid4()}", -1)):
            folder = tmp_path_factory.mktemp(key)
            patch.setenv("TRAINJOB_WORKDIR", str(folder / "runs"))
            job = make_job(folder, SCRIPT, name=name, hyperparameters={"scale": scale})
            training_job(TrainingJob.parse(job), return_state=True)
            facts[key] = told(name, STAGES[key])
    return facts


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as found:
        yield found


def shown(run: str) -> dict[str, Any]:
    """Return what `show --json` prints."""
    with redirect_stdout(StringIO()) as output:
        assert main(["show", run, "--json"]) == 0
    facts: dict[str, Any] = json.loads(output.getvalue())
    return facts


def told(run: str, stages: dict[str, str]) -> dict[str, Any]:
    """Return what is shown of a run once its stages are in these states.

    The server hears of stages by events, which may come after the end of their run.
    """
    wait_until(lambda: {stage["name"]: stage["state"] for stage in shown(run)["stages"]} == stages)
    return shown(run)


def planned(client: SyncPrefectClient, name: str) -> FlowRun:
    """Return a run that waits for a worker."""
    return client.create_flow_run(
        training_job, parameters={"job": {"name": f"job-of-{name}"}}, name=name, state=Scheduled()
    )


def state_of(client: SyncPrefectClient, run: FlowRun) -> str | None:
    state = client.read_flow_run(run.id).state
    return state.name if state else None


@pytest.mark.parametrize("how", ["id", "beginning of the id", "name", "job"])
def test_a_run_is_found_by_what_people_call_it(ended: dict[str, Any], how: str) -> None:
    facts = ended["mended"]
    text = {"id": facts["id"], "beginning of the id": facts["id"][:8]} | facts

    assert shown(text[how])["id"] == facts["id"]


def test_a_job_name_means_its_latest_run(client: SyncPrefectClient) -> None:
    planned(client, "first-of-two")
    latest = client.create_flow_run(
        training_job, parameters={"job": {"name": "job-of-first-of-two"}}, state=Scheduled()
    )

    assert shown("job-of-first-of-two")["id"] == str(latest.id)


def test_a_name_of_two_runs_names_both(client: SyncPrefectClient, capsys) -> None:
    runs = [planned(client, "twin"), planned(client, "twin")]

    assert main(["stop", "twin"]) == 1

    message = capsys.readouterr().err
    assert all(str(run.id) in message for run in runs)
    assert {state_of(client, run) for run in runs} == {"Scheduled"}


def test_a_run_that_is_not_there_is_told_with_the_nearest_one(ended, capsys) -> None:
    assert main(["show", "mendet"]) == 1

    assert "asked for the run 'mendet', found no training job" in (err := capsys.readouterr().err)
    assert "did you mean 'mended'?" in err


def test_show_tells_stages_metrics_and_outputs(ended: dict[str, Any], capsys) -> None:
    assert main(["show", ended["mended"]["id"]]) == 0

    text = " ".join(capsys.readouterr().out.split())
    for expected in (
        f"{ended['mended']['name']}: Completed",
        "stage fetch_code Completed",
        "stage train Completed",
        "every rank finished",
        "metric accuracy 0.5 at step 7",
        "metric loss nan at step 7",
        "output train_url ",
    ):
        assert expected in text


def test_show_for_programs_is_what_the_run_left(ended: dict[str, Any]) -> None:
    facts = ended["mended"]

    assert facts["state"] == "Completed"
    assert [s["name"] for s in facts["stages"]][-2:] == ["train", "upload_outputs"]
    assert {m["name"]: m["last"] for m in facts["metrics"]} == {"accuracy": 0.5, "loss": None}
    assert facts["outputs"][0]["num_files"] >= 2
    assert facts["job_file"]["hyperparameters"] == {"scale": 2}
    assert facts["restarts"] == 0


def test_show_of_a_failed_run_has_the_failure_card(ended: dict[str, Any], capsys) -> None:
    assert main(["show", ended["mangled"]["job"]]) == 0

    text = capsys.readouterr().out
    assert f"{ended['mangled']['name']}: Failed" in text
    assert "RuntimeError: scale is negative" in text
    assert "another try cannot help" in text
    assert "last 1 line of rank 0:" in text


def test_list_shows_the_newest_first_by_state_and_name(ended: dict[str, Any], capsys) -> None:
    job = ended["mangled"]["job"]
    assert main(["list", "--name", job[3:-3], "--json"]) == 0
    named = json.loads(capsys.readouterr().out)["runs"]
    assert main(["list", "--state", "failed", "--json"]) == 0
    failed = json.loads(capsys.readouterr().out)["runs"]
    assert main(["list", "--limit", "1"]) == 0
    table = capsys.readouterr().out.splitlines()

    assert [run["job"] for run in named] == [job]
    assert {run["state"] for run in failed} == {"Failed"}
    assert "mended" not in {run["job"] for run in failed}
    assert table[0].split()[:2] == ["NAME", "STATE"]
    assert len(table) == 2


def test_a_state_that_is_none_is_told_with_the_nearest_one(prefect_server: str, capsys) -> None:
    assert main(["list", "--state", "Canceled"]) == 1

    assert "did you mean 'Cancelled'?" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["Pending", "submitting", "Initializing"])
def test_what_prefect_calls_a_run_that_is_being_started_finds_it(
    client: SyncPrefectClient, word: str
) -> None:
    run = planned(client, f"asked-as-{word}")
    client.set_flow_run_state(run.id, Pending(), force=True)

    found = list_runs(client, Chosen(state=word, name=run.name), 5)

    assert [(listed.id, said) for listed, said in found] == [(run.id, "Initializing")]


@pytest.mark.parametrize(
    ("stage", "word"),
    [
        (None, "Initializing"),
        (stage_inputs, "Staging"),
        (fetch_code, "Staging"),
        (train, "Running"),
        (upload_outputs, "Uploading"),
    ],
)
def test_a_run_that_goes_on_is_in_the_state_of_its_stage(
    client: SyncPrefectClient, stage: Any, word: str, capsys
) -> None:
    name = f"at-{stage.name if stage else 'start'}"
    run = planned(client, name)
    client.set_flow_run_state(run.id, Running(), force=True)
    if stage:
        client.create_task_run(stage, run.id, dynamic_key="0", name=stage.name, state=Running())

    assert main(["list", "--state", word.lower(), "--name", name, "--json"]) == 0

    [listed] = json.loads(capsys.readouterr().out)["runs"]
    assert (listed["name"], listed["state"]) == (name, word)


@pytest.mark.parametrize("asked", ["AwaitingRetry", "AwaitingRestart"])
def test_a_run_that_begins_again_is_not_at_the_last_stage_of_the_pass_before(
    client: SyncPrefectClient, asked: str
) -> None:
    run = planned(client, f"after-{asked}")

    def word(*states: State[Any]) -> str:
        for state in states:
            client.set_flow_run_state(run.id, state, force=True)
        [(_, word)] = list_runs(client, Chosen(name=run.name), 1)
        return word

    word(Running())
    client.create_task_run(report, run.id, dynamic_key="0", name=report.name, state=Completed())
    at_its_end = word()
    ended: State[Any] = Failed() if asked == "AwaitingRetry" else Crashed()
    waiting = word(ended, Scheduled(name=asked))
    taken = word(Pending())
    begun = word(Running())
    found = [listed.id for listed, _ in list_runs(client, Chosen(state="Initializing"), 50)]
    tell_task_run(client, run, train.name, Running(), flow_run_run_count=2)
    wait_until(lambda: word() != "Initializing")
    in_training = word()
    # As of a process that takes its run back; the pass is the same.
    taken_back = word(Crashed(), Running(message="its process lives"))

    assert [at_its_end, waiting, taken, begun] == [
        "Uploading",
        asked,
        "Initializing",
        "Initializing",
    ]
    assert run.id in found
    assert [in_training, taken_back] == ["Running", "Running"]
    assert run.id not in [listed.id for listed, _ in list_runs(client, Chosen(state=asked), 50)]


def test_a_run_that_begins_again_is_at_its_stage_though_the_clock_of_its_worker_is_behind(
    client: SyncPrefectClient,
) -> None:
    run = planned(client, "on-a-slow-clock")
    states: list[State[Any]] = [
        Running(),
        Crashed(),
        Scheduled(name="AwaitingRestart"),
        Pending(),
        Running(),
    ]
    for state in states:
        client.set_flow_run_state(run.id, state, force=True)
    behind = datetime.now(UTC) - timedelta(minutes=5)

    tell_task_run(client, run, train.name, Running(timestamp=behind), flow_run_run_count=2)

    wait_until(lambda: list_runs(client, Chosen(name=run.name), 1)[0][1] == "Running")


@pytest.mark.parametrize("pass_", [1, 2])
@pytest.mark.parametrize(
    "lost",
    [(Crashed(),), (Crashed(), Scheduled(name="AwaitingRestart"))],
    ids=["crashed", "waiting"],
)
def test_a_run_that_its_living_process_took_back_is_at_the_stage_of_its_process(
    client: SyncPrefectClient, lost: tuple[State[Any], ...], pass_: int
) -> None:
    """The process has read the count of the run once, when it began it."""
    run = planned(client, f"taken-back-{len(lost)}-{pass_}")
    first: tuple[State[Any], ...] = (Running(), Crashed(), Scheduled(name="AwaitingRestart"))
    begun = (*first * (pass_ - 1), Pending(), Running())
    for state in (*begun, *lost, Running(message="its process lives; it was lost")):
        client.set_flow_run_state(run.id, state.fresh_copy(), force=True)
    tell_task_run(client, run, stage_inputs.name, Running(), flow_run_run_count=pass_)
    wait_until(lambda: list_runs(client, Chosen(name=run.name), 1)[0][1] == "Staging")

    tell_task_run(client, run, upload_outputs.name, Running(), flow_run_run_count=pass_)

    wait_until(lambda: list_runs(client, Chosen(name=run.name), 1)[0][1] == "Uploading")


def tell_task_run(
    client: SyncPrefectClient,
    run: FlowRun,
    name: str,
    state: State[Any],
    *,
    flow_run_run_count: int,
) -> None:
    """Tell the server of a task run that has begun, as a flow process does: by an event."""
    task = {
        "name": name,
        "task_key": name,
        "dynamic_key": str(uuid4()),
        "start_time": state.timestamp.isoformat(),
        "run_count": 1,
        "flow_run_run_count": flow_run_run_count,
    }
    of_run = {
        "prefect.resource.id": f"prefect.flow-run.{run.id}",
        "prefect.resource.role": "flow-run",
    }
    event = Event(
        occurred=state.timestamp,
        event=f"prefect.task-run.{state.name}",
        payload={
            "validated_state": {"type": state.type.value, "name": state.name},
            "task_run": task,
        },
        resource=Resource(
            {
                "prefect.resource.id": f"prefect.task-run.{uuid4()}",
                "prefect.orchestration": "client",
            }
        ),
        related=[RelatedResource(of_run)],
    )
    client.request("POST", "/events", json=[event.model_dump(mode="json")])


def test_logs_are_what_the_run_said(ended: dict[str, Any], capsys) -> None:
    wait_until(lambda: main(["logs", "mended"]) == 0 and "scaled by 2" in capsys.readouterr().out)
    assert main(["logs", "mended", "--json"]) == 0

    logs = json.loads(capsys.readouterr().out)
    assert logs["id"] == ended["mended"]["id"]
    assert any("scaled by 2" in line["message"] for line in logs["logs"])


def test_following_the_log_of_a_run_ends_with_it(ended: dict[str, Any], capsys) -> None:
    assert main(["logs", "-f", ended["mangled"]["job"]]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("[rank 0] scaled by -1") for line in lines) == 1


def test_a_run_that_waits_is_cancelled_at_once(client: SyncPrefectClient, capsys) -> None:
    run = planned(client, "waits-to-be-stopped")

    assert main(["stop", "waits-to-be-stopped"]) == 0

    assert "waits-to-be-stopped: Cancelled" in capsys.readouterr().out
    assert state_of(client, run) == "Cancelled"


def test_a_run_that_has_ended_is_not_stopped(ended: dict[str, Any], capsys) -> None:
    assert main(["stop", "mended"]) == 1

    assert "found that it is Completed" in capsys.readouterr().err


def test_download_brings_every_file_and_says_what_is_missing(
    ended: dict[str, Any], tmp_path: Path, capsys
) -> None:
    assert main(["download", "mended", str(tmp_path / "whole")]) == 0
    whole = capsys.readouterr().out
    (Path(ended["mended"]["outputs"][0]["url"]) / "deep" / "more.txt").unlink()
    assert main(["download", "mended", str(tmp_path / "part"), "--json"]) == 1
    part = json.loads(capsys.readouterr().out)
    assert main(["download", "mended", str(tmp_path / "whole")]) == 1
    again = capsys.readouterr().out

    assert (tmp_path / "whole/train_url/deep/more.txt").read_text() == "4"
    assert "as the receipt says" in whole
    assert part["outputs"][0]["missing"] == ["deep/more.txt: not in the store"]
    assert (tmp_path / "part/train_url/weights.txt").read_text() == "1 2 3"
    assert "something there already" in again


def test_download_keeps_nothing_that_was_changed_after_the_run(
    ended: dict[str, Any], tmp_path: Path, capsys
) -> None:
    weights = Path(ended["mended"]["outputs"][0]["url"]) / "weights.txt"
    weights.write_text("9 9 9")

    assert main(["download", "mended", str(tmp_path / "out")]) == 1

    weights.write_text("1 2 3")
    assert "weights.txt: not what the receipt says" in capsys.readouterr().out
    assert not (tmp_path / "out" / "train_url").exists()


def test_without_a_server_there_is_one_message(capsys) -> None:
    with temporary_settings({PREFECT_API_URL: None}):
        assert main(["list"]) == 1

    assert "found that PREFECT_API_URL is not set" in capsys.readouterr().err


def test_a_server_that_is_away_is_one_message(capsys) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        assert main(["show", "anything", "--json"]) == 1

    printed = capsys.readouterr()
    assert "'http://127.0.0.1:1/api' does not answer" in json.loads(printed.out)["error"]
    assert "Traceback" not in printed.err


def test_a_server_that_refuses_us_is_one_message(capsys) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/api"

    with temporary_settings({PREFECT_API_URL: url}):
        code = main(["list"])

    server.shutdown()
    server.server_close()
    thread.join()
    assert code == 1
    assert "set PREFECT_API_AUTH_STRING to the one of the server" in capsys.readouterr().err


class _Refusing(BaseHTTPRequestHandler):
    """Answers as Prefect's server does with an auth string: of its health to all, else to none."""

    def do_GET(self) -> None:
        if self.path == "/api/health":
            self._answer(200, b"true")
        else:
            self.do_POST()

    def do_POST(self) -> None:
        self._answer(401, b'{"exception_message": "Unauthorized"}')

    def _answer(self, status: int, body: bytes) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""
