"""A real server and worker, as `make serve` starts them: submit, fail, retry, stop."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment

from blocks.object_store import ObjectStore
from flows.__main__ import main
from flows.run_logs import LogTail
from tests.digits import DIGITS, making_digits
from tests.e2e.machine import begin_run, in_front_of
from tests.jobs import COPY_SCRIPT, make_job, write_job
from tests.serving import Serve, wait_for
from tests.simulated_devices import simulated_device_files
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parent.parent.parent
WITHOUT_OURS = """\
import sys

class Ours:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("trainjob", "tasks", "flows", "blocks", "deployments"):
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Ours())
"""
WAITING = "waiting for 1 card of npu: 0 of 1 free"
ON_THE_CARD = """\
import argparse, os, pathlib, time
parser = argparse.ArgumentParser()
parser.add_argument("--data_url")
for name in ("train_url", "begun", "go"):
    parser.add_argument("--" + name, type=pathlib.Path)
args = parser.parse_args()
begun = time.time_ns()
args.begun.touch()
while not args.go.exists():
    time.sleep(0.05)
card = os.environ["ASCEND_RT_VISIBLE_DEVICES"]
(args.train_url / "card.txt").write_text(f"{card} {begun} {time.time_ns()}")
"""
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A server that has a worker, and another for the one simulated NPU."""
    folder = tmp_path_factory.mktemp("serve")
    cards = {"TRAINJOB_CARDS_DIR": str(folder / "cards")}
    serve = Serve(folder, cards | simulated_device_files(folder / "devices", "davinci0"))
    try:
        serve.wait_until_ready()
        yield serve
    finally:
        if serve.process.returncode is None:  # the last test kills it
            serve.process.send_signal(signal.SIGTERM)
            serve.process.wait(PATIENCE_S)
    assert not serve.answers()


@pytest.fixture
def api(serve: Serve) -> Iterator[str]:
    url = f"http://127.0.0.1:{serve.port}/api"
    with in_front_of(url):
        yield url


def submit(job: dict[str, Any] | None) -> FlowRun:
    """Run the deployment, with its default parameters if `job` is None, and wait for the end."""
    parameters = {"job": job} if job else None
    run = run_deployment(
        "training-job/cpu",
        parameters=parameters,
        timeout=PATIENCE_S,
        poll_interval=0.5,
        idempotency_key=str(uuid4()),  # a client that got no answer asks again
    )
    assert isinstance(run, FlowRun)
    return run


def begin(job: dict[str, Any], pool: str = "cpu") -> FlowRun:
    """Submit a job and do not wait for it."""
    return begin_run(pool, job)


def test_a_job_submitted_to_the_deployment_runs_on_the_worker(tmp_path: Path, api: str) -> None:
    run = submit(make_job(tmp_path))

    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == 42


def test_the_deployment_as_it_is_trains_the_digits_on_two_ranks(api: str) -> None:
    make = [sys.executable, str(ROOT / "examples" / "make_dataset.py"), str(DIGITS)]
    with making_digits() as is_missing:
        if is_missing:  # otherwise another test may be reading it
            subprocess.run(make, check=True, capture_output=True)

    run = submit(None)

    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    metrics = ROOT / ".demo" / "runs" / "digits" / str(run.id) / "metrics.json"
    assert json.loads(metrics.read_text())["test_accuracy"] >= 0.95


def test_a_schedule_alone_trains_a_job_from_s3_to_s3(tmp_path: Path, api: str, s3: Any) -> None:
    bucket = s3.new_bucket()
    s3.put(bucket, "data/value.txt", b"21")
    keys = {"access_key": s3.settings.access_key, "secret_key": s3.settings.secret_key}
    ObjectStore(endpoint_url=s3.endpoint_url, addressing_style="path", **keys).save("lab")
    inputs = [{"name": "data_url", "url": f"s3://{bucket}/data/"}]
    outputs = [{"name": "train_url", "url": f"s3://{bucket}/out/{{run_id}}/"}]
    file = write_job(tmp_path, name="by-schedule", store="lab", inputs=inputs, outputs=outputs)
    soon = (datetime.now(UTC) + timedelta(seconds=5)).isoformat()

    assert main(["schedule", str(file), "--every", "1m", "--anchor", soon]) == 0

    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("training-job/by-schedule").id
        of_this = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))

        def begun() -> list[FlowRun]:
            runs = client.read_flow_runs(flow_run_filter=of_this)
            return [run for run in runs if run.state and (run.state.is_running() or _is_over(run))]

        wait_for(lambda: bool(begun()))
        [first, *_] = begun()
        # Before another minute has passed: the next run would go on into the tests below.
        assert main(["schedule", "delete", "by-schedule"]) == 0
        wait_for(lambda: _is_over(client.read_flow_run(first.id)))
        run = client.read_flow_run(first.id)
    assert run.auto_scheduled
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    assert s3.get(bucket, f"out/{run.id}/result.json") == b"42"


def test_a_wrong_job_submitted_to_the_deployment_fails_with_its_problems(
    tmp_path: Path, api: str
) -> None:
    run = submit(make_job(tmp_path, inputs=[{"name": "data_url", "url": str(tmp_path / "no")}]))

    assert run.state is not None
    assert run.state.is_failed()
    assert "inputs[0].url" in (run.state.message or "")


def test_a_check_submitted_to_its_deployment_tells_all_and_runs_nothing(
    tmp_path: Path, api: str
) -> None:
    job = make_job(tmp_path, hyperparameters={"speed": 1, "scale": "wide"})

    run = run_deployment(
        "check-job/check",
        parameters={"job": job},
        timeout=PATIENCE_S,
        poll_interval=0.5,
        idempotency_key=str(uuid4()),
    )

    assert isinstance(run, FlowRun)
    assert run.state is not None
    assert run.state.is_failed()
    assert "hyperparameters.speed" in (run.state.message or "")
    assert "hyperparameters.scale" in (run.state.message or "")
    assert not (tmp_path / "out").exists()


def test_a_retried_run_goes_on_at_the_stage_that_failed(tmp_path: Path, api: str) -> None:
    trained = tmp_path / "trained.txt"
    intruder = tmp_path / "out" / "intruder.txt"
    script = (
        "import pathlib, sys\n"
        f"with open({str(trained)!r}, 'a') as f: f.write('trained ')\n"
        f"intruder = pathlib.Path({str(intruder)!r})\n"
        "intruder.parent.mkdir()\n"
        "intruder.touch()\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--train_url') + 1])\n"
        "(out / 'model.txt').write_text('weights')\n"
    )
    failed = submit(make_job(tmp_path, script))
    assert failed.state is not None
    assert failed.state.is_failed()
    assert "intruder.txt" in (failed.state.message or "")
    intruder.unlink()

    command = [sys.executable, "-m", "prefect", "flow-run", "retry", str(failed.id)]
    env = os.environ | {"PREFECT_API_URL": api}
    subprocess.run(command, env=env, check=True, capture_output=True)

    with get_client(sync_client=True) as client:
        wait_for(lambda: _is_final(client.read_flow_run(failed.id)))
        state = client.read_flow_run(failed.id).state
    assert state is not None
    assert state.is_completed(), state.message
    assert trained.read_text() == "trained "
    assert (tmp_path / "out" / "model.txt").read_text() == "weights"


def test_the_terminal_submits_watches_reruns_downloads_and_schedules(
    tmp_path: Path, api: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str) -> str:
        assert main(words) == 0
        return capsys.readouterr().out

    outputs = [{"name": "train_url", "url": "out/{run_id}/"}]
    file = str(write_job(tmp_path, name="by-terminal", outputs=outputs))

    watched = said("submit", file, "--watch")
    rerun = ["rerun", "by-terminal", "--set", "hyperparameters.scale=3", "--watch", "--json"]
    again = json.loads(said(*rerun))
    said("download", again["id"], str(tmp_path / "results"))
    said("schedule", file, "--cron", "0 3 * * *")

    assert "result 42" in watched
    assert "by-terminal-" in watched
    assert "output   train_url" in watched
    assert (again["state"], again["job_file"]["hyperparameters"]) == ("Completed", {"scale": 3})
    assert json.loads((tmp_path / "results/train_url/result.json").read_text()) == 63
    wait_for(lambda: json.loads(said("schedule", "list", "--json"))["schedules"][0]["next_start"])
    said("schedule", "delete", "by-terminal")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_program_that_has_only_prefect_gets_the_result(
    tmp_path: Path, api: str, kind: str
) -> None:
    """The programs of docs/programs.md, in a process that cannot import anything of ours."""
    page = (ROOT / "docs" / "programs.md").read_text()
    [program] = re.findall(rf"^```python {kind}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    job = make_job(tmp_path)
    for shown, real in (
        ("/home/me/trainjob/my/code", job["algorithm"]["code"]["url"]),
        ("/home/me/trainjob/my/data", job["inputs"][0]["url"]),
        ("/home/me/results", str(tmp_path / "results")),
        ('"power"', '"scale"'),
    ):
        program = program.replace(shown, real)

    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_OURS + program],
        cwd=tmp_path,
        env=os.environ | {"PREFECT_API_URL": api},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Completed {tmp_path / 'results'}" in done.stdout
    results = sorted(file.read_text() for file in tmp_path.glob("results/*/result.json"))
    assert results == (["42"] if kind == "sync" else ["42", "63"])


def test_a_drained_pool_finishes_its_run_and_keeps_the_next_until_it_is_resumed(
    tmp_path: Path, api: str
) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    script = (
        "import pathlib, time\n"
        f"pathlib.Path({str(begun)!r}).touch()\n"
        f"while not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.1)\n"
    )
    script += COPY_SCRIPT
    first = begin(make_job(tmp_path / "first", script))
    wait_for(begun.exists)
    drain = [sys.executable, "-m", "deployments.drain", "cpu"]
    env = os.environ | {"PREFECT_API_URL": api}

    with get_client(sync_client=True) as client:
        draining = subprocess.Popen(drain, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        wait_for(lambda: client.read_work_pool("cpu").is_paused)
        second = begin(make_job(tmp_path / "second", script))
        go_on.touch()
        said, _ = draining.communicate(timeout=PATIENCE_S)
        ended = client.read_flow_run(first.id).state
        kept = client.read_flow_run(second.id).state
        subprocess.run([*drain, "--resume"], cwd=ROOT, env=env, check=True, capture_output=True)
        wait_for(lambda: _is_over(client.read_flow_run(second.id)))

    assert draining.returncode == 0
    assert "waits for 1 run" in said
    assert "left for --resume: 1 run" in said
    assert ended is not None
    assert ended.is_completed()
    assert kept is not None
    assert kept.is_scheduled()


def test_of_two_jobs_for_one_simulated_card_the_second_waits_for_the_first(
    tmp_path: Path, api: str
) -> None:
    first = begin(job_on_the_card(tmp_path, "first"), pool="npu")
    wait_for((tmp_path / "first.begun").exists)
    second = begin(job_on_the_card(tmp_path, "second"), pool="npu")

    with get_client(sync_client=True) as client:
        tail = LogTail(client, second.id)
        wait_for(lambda: any(WAITING in log.message for log in tail.new()))
        (tmp_path / "go").touch()
        wait_for(lambda: all(_is_over(client.read_flow_run(run.id)) for run in (first, second)))
        ended = [client.read_flow_run(run.id).state for run in (first, second)]

    assert [state.name for state in ended if state] == ["Completed", "Completed"]
    used = [(tmp_path / name / "card.txt").read_text().split() for name in ("first", "second")]
    (first_card, _, first_ended), (second_card, second_begun, _) = used
    assert first_card == second_card == "0"
    assert int(first_ended) < int(second_begun)


def job_on_the_card(folder: Path, name: str) -> dict[str, Any]:
    """Return a job for an NPU that says which one it has, and waits until it may go on."""
    return make_job(
        folder,
        ON_THE_CARD,
        name=name,
        outputs=[{"name": "train_url", "url": str(folder / name)}],
        logs={"url": str(folder / f"logs-{name}")},
        resources={"device": "npu"},
        hyperparameters={"begun": str(folder / f"{name}.begun"), "go": str(folder / "go")},
    )


def _is_over(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()


def _is_final(run: FlowRun) -> bool:
    # Right after the retry the run may still be in its old state of the first pass.
    return run.run_count > 1 and _is_over(run)


def test_at_last_server_and_workers_end_when_what_started_them_is_killed(serve: Serve) -> None:
    """The tests above have no server after it."""
    serve.process.kill()

    serve.process.wait()
    wait_for(lambda: not serve.answers())
    wait_for(lambda: serve.log.read_text().count("stopped!") == 2)
