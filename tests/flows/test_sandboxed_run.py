"""A whole run in a sandbox, with requirements of its own: from the command line to its outputs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.core.environments.wheels import make_wheel
from tests.jobs import make_job, write_job
from trainjob.check.checking import check_job
from trainjob.job import TrainingJob
from trainjob.launch.environment import search_path
from trainjob.launch.sandbox import sandbox_problems
from trainjob.storage.settings import StoreSettings

ROOT = Path(__file__).parent.parent.parent
_WHY_NOT = [problem.found for problem in sandbox_problems(search_path(os.environ))]

SCRIPT = """\
import argparse, os, pathlib, signal
import tool
parser = argparse.ArgumentParser()
for name in ("data_url", "train_url", "checkpoint_dir"):
    parser.add_argument(f"--{name}", type=pathlib.Path)
args = parser.parse_args()
saved = args.checkpoint_dir / "value"
if not saved.exists():
    saved.write_text((args.data_url / "value.txt").read_text())
    os.kill(os.getpid(), signal.SIGKILL)
secret = pathlib.Path.home() / "secret"
(args.train_url / "result").write_text(f"{saved.read_text()} {tool.version} {secret.exists()}")
"""


def keys(folder: Path) -> dict[str, Any]:
    return {
        "sandbox": True,
        "environment": {"requirements": True},
        "checkpoints": {"url": str(folder / "checkpoints")},
        "hyperparameters": {},
        "limits": {"auto_restart": 1},
    }


@pytest.mark.skipif(bool(_WHY_NOT), reason=" ".join(_WHY_NOT))
def test_a_killed_rank_goes_on_from_its_checkpoint_in_a_sandbox_with_requirements(
    tmp_path: Path, prefect_server: str
) -> None:
    make_wheel(tmp_path / "wheels", "tool", "1.0")
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret").touch()
    job = write_job(tmp_path, SCRIPT, **keys(tmp_path))
    (tmp_path / "code" / "requirements.txt").write_text("tool==1.0\n")

    done = subprocess.run(
        [sys.executable, "-m", "flows", "run", str(job)],
        cwd=ROOT,
        env=os.environ
        | {
            "PREFECT_API_URL": prefect_server,
            "HOME": str(home),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(tmp_path / "wheels"),
            "TRAINJOB_SANDBOX_SHOWS": str(tmp_path / "wheels"),
        },
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "[3/6] install_requirements  1 package, " in done.stdout
    assert "killed" in done.stdout
    assert (tmp_path / "out" / "result").read_text() == "21 1.0 False"
    [run] = (tmp_path / "runs").glob("*-*")
    assert not {"private", "environment", "code"} & {path.name for path in run.iterdir()}


def test_a_check_tells_what_keeps_requirements_from_being_installed(tmp_path: Path) -> None:
    script = "import no_such_module\n" + SCRIPT
    asked = {"environment": {"requirements": True}, "outputs": [], "inputs": []}
    job = TrainingJob.parse(make_job(tmp_path, script, **asked, hyperparameters={}))

    [missing] = check_job(job, StoreSettings()).errors
    (tmp_path / "code" / "requirements.txt").write_text("no-such-package==1.0\n")
    findings = check_job(job, StoreSettings())

    assert missing.id == "environment-requirements"
    assert not findings.problems
    assert any("whether pip finds" in line for line in findings.not_checked)


def test_a_check_tells_that_there_is_no_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = TrainingJob.parse(make_job(tmp_path, sandbox=True))
    monkeypatch.setenv("PATH", str(tmp_path))

    [problem] = check_job(job, StoreSettings()).errors

    assert (problem.id, problem.found) == ("sandbox", "no bubblewrap")
