"""The command line as a person types it: output, exit codes, one message a mistake."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import make_job, write_job
from tests.waiting import PATIENCE_S, wait_until
from trainjob.job import TrainingJob

ROOT = Path(__file__).parent.parent.parent


def flows(*words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "flows", *words],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_run_tells_the_story_and_ends_with_0(tmp_path: Path, prefect_server: str) -> None:
    done = flows("run", str(write_job(tmp_path)), PREFECT_API_URL=prefect_server)

    assert done.returncode == 0, done.stdout + done.stderr
    for text in (
        "[1/5] stage_inputs  data_url: 1 file,",
        "[3/5] inject_hyperparameters  6 arguments",
        "rank 0 | result 42",
        "[5/5] upload_outputs  train_url: 1 file,",
        "Completed after",
        str(tmp_path / "out"),
    ):
        assert text in done.stdout
    assert done.stderr == ""


def test_what_prefect_says_of_itself_is_not_in_the_story() -> None:
    script = (
        "import logging\n"
        "from flows.__main__ import main\n"
        "assert main(['schema']) == 0\n"
        "from prefect.logging.configuration import setup_logging\n"
        "setup_logging()\n"
        "logging.getLogger('prefect._internal.concurrency').error('an event got lost')\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stderr == ""


def test_run_of_a_failing_script_ends_with_1_and_its_cause(
    tmp_path: Path, prefect_server: str
) -> None:
    job = write_job(tmp_path, "print('before')\nraise RuntimeError('lost the data')\n")

    done = flows("run", str(job), PREFECT_API_URL=prefect_server)

    assert done.returncode == 1
    assert "Failed after" in done.stdout
    assert "RuntimeError: lost the data" in done.stdout
    assert 'train.py", line 2' in done.stdout
    assert "runpy" not in done.stdout + done.stderr


def test_run_for_machines_prints_one_object(tmp_path: Path, prefect_server: str) -> None:
    done = flows("run", "--json", str(write_job(tmp_path)), PREFECT_API_URL=prefect_server)

    result = json.loads(done.stdout)
    assert result["state"] == "Completed"
    assert result["exit_code"] == done.returncode == 0
    assert result["outputs"][0]["url"] == str(tmp_path / "out")
    assert "[1/5] stage_inputs" in done.stderr


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_ends_with_130_and_leaves_no_process(
    tmp_path: Path, prefect_server: str, stop: signal.Signals
) -> None:
    started = tmp_path / "started"
    script = f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(60)\n"
    command = [sys.executable, "-m", "flows", "run", str(write_job(tmp_path, script))]
    env = os.environ | {"PREFECT_API_URL": prefect_server}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        wait_until(started.exists)
        process.send_signal(stop)
        output, _ = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 130
    assert "Cancelled after" in output
    assert f"logs  {tmp_path}" in output


@pytest.mark.parametrize("with_store", [False, True])
def test_ctrl_c_in_a_terminal_leaves_the_temporary_server_time_to_hear_of_it(
    tmp_path: Path, with_store: bool
) -> None:
    started = tmp_path / "started"
    script = f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(60)\n"
    job = write_job(tmp_path, script, **({"store": "lab"} if with_store else {}))
    env = os.environ | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    if with_store:
        save = "from blocks.object_store import ObjectStore; ObjectStore().save('lab')"
        subprocess.run([sys.executable, "-c", save], cwd=ROOT, env=env, check=True)
    with subprocess.Popen(
        [sys.executable, "-m", "flows", "run", str(job)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        wait_until(started.exists)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 130, output
    assert "Cancelled after" in output
    assert "Traceback" not in output


def test_nothing_is_left_when_the_flow_process_is_killed(tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(60)\n"
    mark = f"PREFECT_HOME={tmp_path / 'prefect'}"
    env = os.environ | {"PREFECT_HOME": str(tmp_path / "prefect")}
    command = [sys.executable, "-m", "flows", "run", str(write_job(tmp_path, script))]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL) as process:
        wait_until(started.exists)
        assert len(_processes_with(mark)) > 1  # the temporary server is one of them
        process.kill()

    wait_until(lambda: not _processes_with(mark))


def test_many_ctrl_c_in_a_row_are_one_stop(tmp_path: Path, prefect_server: str) -> None:
    started = tmp_path / "started"
    script = (
        "import pathlib, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(started)!r}).touch()\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "flows", "run", str(write_job(tmp_path, script))]
    env = os.environ | {"PREFECT_API_URL": prefect_server}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        wait_until(started.exists)
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)  # the pace of an impatient person
        output = process.stdout.read() if process.stdout else ""

    assert process.returncode == 130
    assert "Cancelled after" in output


def test_a_store_that_does_not_answer_is_no_mistake_in_the_job(tmp_path: Path) -> None:
    job = write_job(tmp_path, inputs=[{"name": "data_url", "url": "s3://bucket/data/"}])
    env = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    env |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "r"}

    done = flows("check", str(job), **env)

    assert done.returncode == 1
    assert "inputs[0].url" in done.stderr
    assert "127.0.0.1:1" in done.stderr


def test_a_server_that_does_not_answer_is_one_message(tmp_path: Path) -> None:
    done = flows("run", str(write_job(tmp_path)), PREFECT_API_URL="http://127.0.0.1:1/api")

    assert done.returncode == 1
    assert "the Prefect server at 'http://127.0.0.1:1/api' does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_shows_paths_command_and_environment(tmp_path: Path) -> None:
    done = flows("check", str(write_job(tmp_path, env={"COLOR": "blue"})), SECRET_OF_WORKER="x")

    assert done.returncode == 0, done.stderr
    for text in (
        "python train.py --data_url",
        "--scale 2",
        "COLOR=blue",
        "TRAINJOB_HP_SCALE=2",
        str(tmp_path / "data"),
        str(tmp_path / "out"),
        "not checked:",
    ):
        assert text in done.stdout
    assert "SECRET_OF_WORKER" not in done.stdout
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs").exists()


def test_check_for_machines_prints_one_object(tmp_path: Path) -> None:
    plan = json.loads(flows("check", "--json", str(write_job(tmp_path))).stdout)

    assert plan["inputs"][0]["url"] == str(tmp_path / "data")
    assert plan["environment"]["TRAINJOB_HP_SCALE"] == "2"


def test_schema_is_that_of_the_job_file() -> None:
    assert json.loads(flows("schema").stdout) == TrainingJob.model_json_schema()


def test_verify_proves_a_receipt_and_notices_one_changed_byte(
    tmp_path: Path, prefect_server: str
) -> None:
    flows("run", str(write_job(tmp_path)), PREFECT_API_URL=prefect_server)
    whole = flows("verify", str(tmp_path / "out"))
    (tmp_path / "out" / "result.json").write_text("43")

    changed = flows("verify", str(tmp_path / "out"))

    assert whole.returncode == 0
    assert "1 file, 2 B, all as the receipt says" in whole.stdout
    assert changed.returncode == 1
    assert "result.json" in changed.stderr


BAD_JOBS: dict[str, tuple[dict[str, Any], str]] = {
    "input missing": ({"inputs": [{"name": "data_url", "url": "absent"}]}, "inputs[0].url"),
    "output blocked": (
        {"outputs": [{"name": "train_url", "url": "code/train.py/x"}]},
        "outputs[0].url",
    ),
    "no boot file": (
        {"algorithm": {"code": {"url": "code"}, "boot_file": "other.py"}},
        "algorithm.boot_file",
    ),
    "boot file outside": (
        {"algorithm": {"code": {"url": "code"}, "boot_file": "../job.py"}},
        "algorithm.boot_file",
    ),
    "no such store": ({"store": "nowhere"}, "store"),
    "unknown key": ({"hyperparamters": {}}, "did you mean 'hyperparameters'?"),
    "too many ranks": ({"resources": {"processes_per_node": 3}}, "resources.processes_per_node"),
}


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize("name", BAD_JOBS)
def test_a_wrong_job_is_one_message_and_2_and_creates_nothing(
    tmp_path: Path, prefect_server: str, command: str, name: str
) -> None:
    changes, expected = BAD_JOBS[name]
    file = write_job(tmp_path, **changes)
    before = sorted(tmp_path.rglob("*"))

    done = flows(command, str(file), PREFECT_API_URL=prefect_server)

    assert done.returncode == 2, done.stdout + done.stderr
    assert expected in done.stderr
    assert "1 problem\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_job_file_is_one_message(tmp_path: Path) -> None:
    done = flows("run", str(tmp_path / "absent.yaml"))

    assert done.returncode == 2
    assert "no such file" in done.stderr


def test_a_wrong_secret_is_never_shown(tmp_path: Path, s3: Any) -> None:
    bucket = s3.new_bucket()
    job = make_job(tmp_path)
    file = write_job(tmp_path, inputs=[{"name": "data_url", "url": f"s3://{bucket}/data/"}])
    secret = "wrong-secret-of-somebody"

    done = flows("check", str(file), **(s3.env | {"AWS_SECRET_ACCESS_KEY": secret}))

    assert job["name"] == "copy"
    assert done.returncode == 2
    assert "inputs[0].url" in done.stderr
    assert secret not in done.stdout + done.stderr


def _processes_with(mark: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found
