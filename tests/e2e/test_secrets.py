"""A server with a login: nobody gets in without it, and no secret lies where others can read it.

Secrets are planted wherever a user may have one. Then jobs run that print and raise all they know,
and everything that server, workers and runs leave on the disk is searched.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, WorkerStatus
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from pydantic import SecretStr

from blocks.object_store import ObjectStore
from deployments import drain, register
from flows.__main__ import main
from tests.e2e.machine import ROOT, Machine
from tests.e2e.planted import places_with
from tests.jobs import make_job, write_job
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

PLANTED = {
    "key of the store": "admin-secret",  # the one that the store of the tests knows
    "secret of the job": 'k3y+of/the="job"&\\more',
    "login of the server": "lab:l0gin+of/the=server",
    "password of the proxy": "pr0xy-passw0rd",
    "variable of the worker": "t0ken/of+the=worker",
    "password in the url of the code": "g1t-passw0rd",
    "secret in env": "t0ken+in/env=of&job",
    "password in a url in env": "mlfl0w-passw0rd",
}
PUBLIC = "wh4t-everyone-may/read+"
SCRIPT = """\
import argparse, os, pathlib, time, urllib.parse

parser = argparse.ArgumentParser()
parser.add_argument("--data_url")
parser.add_argument("--train_url", type=pathlib.Path)
parser.add_argument("--then")
args = parser.parse_args()
for name, value in os.environ.items():
    print(name, "=", value, "in a url", urllib.parse.quote(value, safe=""), flush=True)
with open(args.train_url / "starts.txt", "a") as starts:
    starts.write("start ")
if args.then == "fail":
    raise ValueError(f"cannot log in with {dict(os.environ)}")
if args.then == "wait":
    (args.train_url / "begun.txt").touch()
    time.sleep(600)
assert os.environ["API_KEY"] == os.environ["EXPECTED"][::-1] and os.environ["AWS_ACCESS_KEY_ID"]
"""
ASKING = [
    ["list"],
    ["show", "then-fail"],
    ["logs", "then-fail"],
    ["stop", "then-fail"],
    ["rerun", "then-fail"],
    ["download", "then-fail"],
    ["submit", "JOB"],
    ["schedule", "JOB", "--cron", "0 3 * * *"],
    ["schedule", "list"],
    ["check", "JOB"],
    ["verify", "s3://bucket/out/", "--store", "lab"],
    ["dataset", "list"],
    ["register"],
    ["drain", "cpu"],
]


@dataclass
class Locked:
    """A machine whose server has a login, and what became of its runs.

    Attributes:
        machine: The machine; everything is below its folder.
        runs: The runs that ended, by what their script was told to do.
        refused: What was said of jobs that were not taken, by what was wrong with them.
        said: Everything that the commands of a person have printed.
    """

    machine: Machine
    runs: dict[str, FlowRun] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    said: str = ""

    def command(self, *words: str) -> str:
        """Run a command of a person and return what it answered."""
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as errors:
            main(words)
        self.said += out.getvalue() + errors.getvalue()
        return out.getvalue()

    def submit(self, name: str, job: dict[str, Any]) -> str:
        # Beside the folder that is searched: a job that is refused has its secret in it.
        file = self.machine.folder.with_name(f"{name}.yaml")
        file.write_text(yaml.safe_dump(job))
        return self.command("submit", str(file), "--json")

    def end_of(self, run_id: str) -> FlowRun:
        with get_client(sync_client=True) as client:
            wait_until(lambda: _is_over(client.read_flow_run(UUID(run_id))))
            return client.read_flow_run(UUID(run_id))

    def workspace(self, run_id: str) -> Path:
        return self.machine.folder / "runs" / run_id


def _is_over(run: FlowRun) -> bool:
    if run.state is None or not run.state.is_final():
        return False
    return not run.state.is_cancelled() or "Saved: " in (run.state.message or "")


def telling_job(folder: Path, bucket: str, then: str, **changes: Any) -> dict[str, Any]:
    job = make_job(folder, SCRIPT, name=f"then-{then}")
    job["inputs"] = [{"name": "data_url", "url": f"s3://{bucket}/data/", "mode": "stream"}]
    job["logs"] = {"url": str(folder / "logs")}
    job["hyperparameters"] = {"then": then}
    job["secrets"] = {"API_KEY": f"key-of-{then}"}
    job["env"] = {"EXPECTED": PLANTED["secret of the job"][::-1], "COLOR": PUBLIC}
    return job | changes


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, s3: Any) -> Iterator[Locked]:
    """Run all jobs to their ends on a machine with two workers of one name."""
    folder = tmp_path_factory.mktemp("locked") / "machine"
    (folder / "tmp").mkdir(parents=True)
    bucket = s3.new_bucket()
    s3.put(bucket, "data/value.txt", b"4")
    env = s3.env | {
        "PREFECT_SERVER_API_AUTH_STRING": PLANTED["login of the server"],
        "PREFECT_API_AUTH_STRING": PLANTED["login of the server"],
        "HTTPS_PROXY": f"http://me:{PLANTED['password of the proxy']}@127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
        "TMPDIR": str(folder / "tmp"),  # where workers keep the environment of a run while it runs
        "GITHUB_TOKEN": PLANTED["variable of the worker"],
        "PREFECT_LOGGING_LEVEL": "DEBUG",  # not of the server: its web server logs all headers then
    }
    machine = Machine(folder, env)
    try:
        machine.add_worker()
        with talking_to(machine, PLANTED["login of the server"]):
            yield _told(Locked(machine), bucket, s3)
    finally:
        machine.end()


def talking_to(machine: Machine, login: str | None) -> Any:
    return temporary_settings({PREFECT_API_URL: machine.api_url, PREFECT_API_AUTH_STRING: login})


def _told(locked: Locked, bucket: str, s3: Any) -> Locked:
    ObjectStore(
        endpoint_url=s3.endpoint_url,
        region="us-east-1",
        access_key="admin-key",
        secret_key=SecretStr(PLANTED["key of the store"]),
        addressing_style="path",
    ).save("lab")
    for then in ("wait", "succeed", "fail"):
        Secret(value=PLANTED["secret of the job"]).save(f"key-of-{then}")
    _run(locked, bucket)
    folder = locked.machine.folder
    code = f"git+https://me:{PLANTED['password in the url of the code']}@127.0.0.1:9/code.git"
    algorithm = {"code": {"url": code}, "boot_file": "train.py"}
    uri = f"https://me:{PLANTED['password in a url in env']}@127.0.0.1:9"
    changes: dict[str, dict[str, Any]] = {
        "code": {"algorithm": algorithm},
        "token": {"env": {"HF_TOKEN": PLANTED["secret in env"]}},
        "uri": {"env": {"MLFLOW_TRACKING_URI": uri}},
    }
    for name, change in changes.items():
        job = telling_job(folder / "refused", bucket, "succeed", **change)
        locked.refused[name] = locked.submit(name, job)
    for run in locked.runs.values():
        for words in (["show"], ["show", "--json"], ["logs"]):
            locked.command(*words, str(run.id))
    return locked


def _run(locked: Locked, bucket: str) -> None:
    """Have three jobs run, one of which is stopped when it has said what it knows."""
    run_ids = {}
    for then, store in {"wait": "lab", "succeed": "lab", "fail": None}.items():
        job = telling_job(locked.machine.folder / then, bucket, then, store=store)
        run_ids[then] = json.loads(locked.submit(then, job))["id"]
    wait_until((locked.workspace(run_ids["wait"]) / "outputs/train_url/begun.txt").exists)
    # What its ranks have printed is the old value, whatever is saved when the run is stopped.
    Secret(value="a new key").save("key-of-wait", overwrite=True)
    locked.command("stop", run_ids["wait"])
    locked.runs |= {then: locked.end_of(run_id) for then, run_id in run_ids.items()}
    kept_by_workers = (locked.machine.folder / "tmp").glob
    wait_until(lambda: not list(kept_by_workers("prefect-workspace-*")))


def test_the_jobs_ended_as_they_were_to(locked: Locked) -> None:
    states = {then: run.state.name for then, run in locked.runs.items() if run.state}

    assert states == {"succeed": "Completed", "fail": "Failed", "wait": "Cancelled"}


def test_two_workers_of_one_name_run_every_job_once(locked: Locked) -> None:
    with get_client(sync_client=True) as client:
        workers = client.read_workers_for_work_pool("cpu")

    assert [(worker.name, worker.status) for worker in workers] == [("worker", WorkerStatus.ONLINE)]
    assert {run.run_count for run in locked.runs.values()} == {1}
    for then in locked.runs:
        starts = locked.machine.folder / then / "out" / "starts.txt"
        assert starts.read_text() == "start "


def test_what_everyone_may_know_is_found_wherever_it_went(locked: Locked) -> None:
    """Otherwise it would say nothing that a secret is not found."""
    found = places_with(PUBLIC, locked.machine.folder)

    assert {"prefect/prefect.db: flow_run", "prefect/prefect.db: log"} <= found
    assert {f"{then}/logs/attempt-0/rank-0.log" for then in locked.runs} <= found


@pytest.mark.parametrize("what", PLANTED)
def test_a_secret_is_nowhere_but_in_what_the_script_itself_wrote(locked: Locked, what: str) -> None:
    of_runs = {then: f"runs/{run.id}/logs/attempt-0" for then, run in locked.runs.items()}
    own_logs = {f"{folder}/rank-0.log" for folder in of_runs.values()}
    own_logs.add(f"{of_runs['fail']}/records/error-0.json")
    known_to_ranks = what in ("key of the store", "secret of the job")

    found = places_with(PLANTED[what], locked.machine.folder)

    assert found == (own_logs if known_to_ranks else set())
    assert PLANTED[what] not in locked.said


def test_what_a_script_tells_of_its_secrets_is_told_without_them(locked: Locked) -> None:
    failed = locked.runs["fail"].state

    assert failed is not None
    assert "cannot log in with" in (failed.message or "")
    assert "'API_KEY': '***'" in (failed.message or "")
    for then in locked.runs:
        log = (locked.machine.folder / then / "logs/attempt-0/rank-0.log").read_text()
        assert "API_KEY = *** in a url ***" in log
        assert "AWS_SECRET_ACCESS_KEY = *** in a url ***" in log


def test_a_job_with_a_secret_where_everyone_reads_it_is_refused(locked: Locked) -> None:
    assert "algorithm.code.url: asked for a url without a password" in locked.refused["code"]
    assert "env.HF_TOKEN: asked for a value that everyone" in locked.refused["token"]
    assert "env.MLFLOW_TRACKING_URI: asked for a value that everyone" in locked.refused["uri"]


@pytest.mark.parametrize("login", [None, "lab:wr0ng"], ids=["none", "wrong"])
@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_who_does_not_know_the_login_is_told_so_in_one_message(
    locked: Locked,
    words: list[str],
    login: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = str(write_job(tmp_path, store="lab", outputs=[]))
    monkeypatch.setenv("TRAINJOB_REGISTRY", "prefect" if words[0] == "dataset" else str(tmp_path))
    commands = {"register": register.main, "drain": drain.main}
    command, given = commands.get(words[0], main), words[words[0] in commands :]

    with talking_to(locked.machine, login):
        code = command([job if word == "JOB" else word for word in given])

    _assert_refused(code, capsys.readouterr().err, login)


def test_a_run_that_may_not_tell_the_server_does_not_begin(locked: Locked, tmp_path: Path) -> None:
    env = {"PREFECT_API_URL": locked.machine.api_url, "PREFECT_API_AUTH_STRING": "lab:wr0ng"}
    command = [sys.executable, "-m", "flows", "run", str(write_job(tmp_path))]

    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False
    )

    _assert_refused(done.returncode, done.stderr, "lab:wr0ng")
    assert not (tmp_path / "out").exists()


def test_a_worker_that_does_not_know_the_login_ends_and_says_so(locked: Locked) -> None:
    env = {**locked.machine.env, "PREFECT_API_AUTH_STRING": "lab:wr0ng"}
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "cpu"]

    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    said = done.stdout + done.stderr  # Prefect uses the one or the other
    assert done.returncode == 1
    assert "401 Unauthorized" in said
    assert "wr0ng" not in said


def _assert_refused(code: int, said: str, login: str | None) -> None:
    assert code == 1
    assert said.count("\n") == 1, said
    assert "refuses who asks (401 Unauthorized); set PREFECT_API_AUTH_STRING to the one of" in said
    assert login is None or login not in said
