"""Every command that needs a server says in one message that there is none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments import drain, register
from flows.__main__ import main
from tests.jobs import write_job

ROOT = Path(__file__).parents[2]
AWAY = "http://127.0.0.1:1/api"
ASKING = [
    ["list"],
    ["show", "digits"],
    ["logs", "digits"],
    ["stop", "digits"],
    ["rerun", "digits"],
    ["download", "digits"],
    ["submit", "JOB"],
    ["schedule", "JOB", "--cron", "0 3 * * *"],
    ["schedule", "list"],
    ["algorithm", "deploy", "digits"],
    ["register"],
    ["drain", "cpu"],
]


@pytest.mark.parametrize("url", [None, AWAY], ids=["none", "away"])
@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_a_command_for_a_server_that_is_not_there_is_one_message(
    words: list[str], url: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = str(write_job(tmp_path))
    commands = {"register": register.main, "drain": drain.main}
    command, given = commands.get(words[0], main), words[words[0] in commands :]

    with temporary_settings({PREFECT_API_URL: url}):
        code = command([job if word == "JOB" else word for word in given])

    said = capsys.readouterr().err
    assert code == 1
    assert said.count("\n") == 1, said
    expected = f"{AWAY!r} does not answer" if url else "found that PREFECT_API_URL is not set"
    assert expected in said


def test_a_run_whose_server_is_away_does_not_begin(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows", "run", str(write_job(tmp_path))],
        cwd=ROOT,
        env=os.environ | {"PREFECT_API_URL": AWAY},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()
