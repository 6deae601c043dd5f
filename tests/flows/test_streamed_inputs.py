"""Channels that are not copied: the script reaches the store itself, and nobody else learns how."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import Log
from prefect.settings import PREFECT_HOME

from flows.training_job import training_job
from tests.jobs import make_job
from tests.waiting import PATIENCE_S
from trainjob.job import TrainingJob
from trainjob.report import RunReport
from trainjob.workspace import workspaces_dir

pytestmark = pytest.mark.usefixtures("prefect_server")

SECRET = "admin-secret"
SCRIPT = """\
import argparse, json, os, pathlib, s3fs
parser = argparse.ArgumentParser()
parser.add_argument("--data_url")
parser.add_argument("--train_url", type=pathlib.Path)
parser.add_argument("--scale", type=int)
args = parser.parse_args()
value = int(s3fs.S3FileSystem().cat_file(args.data_url + "value.txt"))
commands, pid = b"", os.getpid()
while pid > 1:
    process = pathlib.Path(f"/proc/{pid}")
    commands += (process / "cmdline").read_bytes()
    pid = int((process / "stat").read_text().rpartition(")")[2].split()[1])
told = {"result": args.scale * value, "url": os.environ["DATA_URL"]}
told["is_secret_on_a_command_line"] = os.environ["AWS_SECRET_ACCESS_KEY"].encode() in commands
(args.train_url / "result.json").write_text(json.dumps(told))
"""
TELLING_SCRIPT = """\
import os
print("the secret is", os.environ["AWS_SECRET_ACCESS_KEY"], flush=True)
raise ValueError("cannot log in with " + os.environ["AWS_SECRET_ACCESS_KEY"])
"""


@pytest.fixture
def bucket(s3: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    bucket: str = s3.new_bucket()
    s3.put(bucket, "data/value.txt", b"4")
    return bucket


def streaming_job(folder: Path, bucket: str, script: str, mode: str = "stream") -> TrainingJob:
    job = make_job(folder, script)
    job["inputs"] = [{"name": "data_url", "url": f"s3://{bucket}/data/", "mode": mode}]
    job["outputs"][0]["url"] = f"s3://{bucket}/out/"
    job["logs"] = {"url": f"s3://{bucket}/logs/"}
    return TrainingJob.parse(job)


def told_by_prefect(run_id: str) -> str:
    """Return all that the server of Prefect knows of a run that has ended."""
    with get_client(sync_client=True) as client:
        logs = _all_logs(client, run_id)
        run = client.read_flow_run(UUID(run_id))
        states = client.read_flow_run_states(UUID(run_id))
        artifacts = [a for a in client.read_artifacts(limit=200) if str(a.flow_run_id) == run_id]
    assert artifacts
    return "\n".join(part.model_dump_json() for part in (*logs, run, *states, *artifacts))


def _all_logs(client: SyncPrefectClient, run_id: str) -> list[Log]:
    """Return the log when its last line has come, which a thread of Prefect sends."""
    mine = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[UUID(run_id)]))
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        logs = client.read_logs(mine)
        if any(log.name == "prefect.flow_runs" and "Finished in" in log.message for log in logs):
            return logs
        time.sleep(0.1)  # the pause between two looks at the condition
    pytest.fail(f"the log has no end: {logs}")


def files_with(secret: str, *folders: Path) -> Iterator[Path]:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and secret.encode() in path.read_bytes():
                yield path


def in_store(s3: Any, bucket: str) -> str:
    return "".join(s3.get(bucket, key).decode(errors="replace") for key in s3.keys(bucket))


def test_a_rank_reads_an_object_from_the_url_that_it_was_given_and_the_secret_is_nowhere(
    tmp_path: Path, s3: Any, bucket: str
) -> None:
    report: RunReport = training_job(streaming_job(tmp_path, bucket, SCRIPT))

    assert s3.get(bucket, "out/result.json") == (
        b'{"result": 8, "url": "s3://%s/data/", "is_secret_on_a_command_line": false}'
        % bucket.encode()
    )
    assert not (workspaces_dir() / report.run_id / "inputs").exists()
    assert list(files_with(SECRET, tmp_path, Path(PREFECT_HOME.value()))) == []
    assert SECRET not in in_store(s3, bucket)
    assert SECRET not in told_by_prefect(report.run_id)


def test_a_script_that_tells_the_secret_tells_it_to_nobody_but_its_own_log(
    tmp_path: Path, s3: Any, bucket: str
) -> None:
    state = training_job(streaming_job(tmp_path, bucket, TELLING_SCRIPT), return_state=True)

    run_id = str(state.state_details.flow_run_id)
    assert state.is_failed()
    assert "cannot log in with ***" in str(state.message)
    told = told_by_prefect(run_id)
    assert "the secret is ***" in told
    assert SECRET not in told
    assert SECRET not in in_store(s3, bucket)
    assert "the secret is ***" in in_store(s3, bucket)


def test_a_channel_that_is_staged_gives_the_script_no_credentials(
    tmp_path: Path, bucket: str
) -> None:
    script = "import os\nassert not [name for name in os.environ if name.startswith('AWS_')]\n"
    job = streaming_job(tmp_path, bucket, script, mode="link")

    report = training_job(job.model_copy(update={"outputs": []}))

    assert report.state == "Completed"
