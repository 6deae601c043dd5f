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

from flows.__main__ import main
from tests.jobs import make_job, write_job
from tests.prefect_homes import fill_home
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


def temporary_server(folder: Path) -> dict[str, str]:
    """Return the variables for a server of its own, which may start slowly."""
    return {
        "PREFECT_HOME": str(fill_home(folder / "prefect")),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "170",
    }


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


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGHUP])
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


def test_ctrl_c_in_a_terminal_leaves_the_temporary_server_time_to_hear_of_it(
    tmp_path: Path,
) -> None:
    """Though it is started early, to ask it for the store."""
    started = tmp_path / "started"
    script = f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(60)\n"
    job = write_job(tmp_path, script, store="lab")
    env = os.environ | temporary_server(tmp_path)
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
    env = os.environ | temporary_server(tmp_path)
    mark = f"PREFECT_HOME={env['PREFECT_HOME']}"
    command = [sys.executable, "-m", "flows", "run", str(write_job(tmp_path, script))]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL) as process:
        wait_until(started.exists)
        assert len(_processes_with(mark)) > 1  # the temporary server is one of them
        process.kill()

    wait_until(lambda: not _processes_with(mark))


def test_a_temporary_server_that_does_not_start_in_time_is_one_clear_error(tmp_path: Path) -> None:
    in_no_time = {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "1",
    }

    done = flows("run", str(write_job(tmp_path)), **in_no_time)

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "temporary server did not start within 1 s (Timed out" in done.stderr
    assert "which says what is wrong with it" in done.stderr


def test_a_temporary_server_that_has_ended_is_told_as_such(tmp_path: Path) -> None:
    ends_at_once = {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "15",
        "UVICORN_WORKERS": "a wrong setting",
    }

    done = flows("run", str(write_job(tmp_path)), **ends_at_once)

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "exited with code 2); if this machine is busy" in done.stderr


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


def test_a_store_that_does_not_answer_is_no_mistake_in_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path, inputs=[{"name": "data_url", "url": "s3://bucket/data/"}])
    env = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    env |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "r"}
    for variable, value in env.items():
        monkeypatch.setenv(variable, value)

    code = main(["check", str(job)])

    said = capsys.readouterr().err
    assert code == 1
    assert "inputs[0].url" in said
    assert "127.0.0.1:1" in said


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


def test_check_for_machines_prints_one_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--json", str(write_job(tmp_path))]) == 0

    plan = json.loads(capsys.readouterr().out)
    assert plan["inputs"][0]["url"] == str(tmp_path / "data")
    assert plan["environment"]["TRAINJOB_HP_SCALE"] == "2"


def test_schema_is_that_of_the_job_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0

    assert json.loads(capsys.readouterr().out) == TrainingJob.model_json_schema()


def test_verify_proves_a_receipt_and_notices_one_changed_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "result.json").write_text("42")
    assert main(["upload", str(tmp_path / "made"), str(tmp_path / "out")]) == 0

    whole = main(["verify", str(tmp_path / "out")])
    said_of_whole = capsys.readouterr().out
    (tmp_path / "out" / "result.json").write_text("43")
    changed = main(["verify", str(tmp_path / "out")])

    assert whole == 0
    assert "1 file, 2 B, all as the receipt says" in said_of_whole
    assert changed == 1
    assert "result.json" in capsys.readouterr().err


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
    tmp_path: Path,
    prefect_server: str,
    capsys: pytest.CaptureFixture[str],
    command: str,
    name: str,
) -> None:
    changes, expected = BAD_JOBS[name]
    file = write_job(tmp_path, **changes)
    before = sorted(tmp_path.rglob("*"))

    code = main([command, str(file)])

    said = capsys.readouterr()
    assert code == 2, said.out + said.err
    assert expected in said.err
    assert "1 problem\n" in said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_job_file_is_one_message(tmp_path: Path) -> None:
    done = flows("run", str(tmp_path / "absent.yaml"))

    assert done.returncode == 2
    assert "no such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_secret_is_never_shown(
    tmp_path: Path,
    s3: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bucket = s3.new_bucket()
    job = make_job(tmp_path)
    file = write_job(tmp_path, inputs=[{"name": "data_url", "url": f"s3://{bucket}/data/"}])
    secret = "wrong-secret-of-somebody"

    for variable, value in (s3.env | {"AWS_SECRET_ACCESS_KEY": secret}).items():
        monkeypatch.setenv(variable, value)

    code = main(["check", str(file)])

    said = capfd.readouterr()
    assert job["name"] == "copy"
    assert code == 2
    assert "inputs[0].url" in said.err
    assert secret not in said.out + said.err


def _processes_with(mark: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found
