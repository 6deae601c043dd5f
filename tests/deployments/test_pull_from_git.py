"""Runs whose code comes from git, by the pull step of docs/operations.md."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import get_client

from flows.training_job import training_job
from tests.jobs import make_job

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
GIT = ("git", "-c", "user.name=t", "-c", "user.email=t@example.com")


PACKAGES = ("blocks", "flows", "tasks", "trainjob")
TELLS = """
import json, sys
with open({notes!r}, "a") as notes:
    notes.write(json.dumps([__name__, sys.orig_argv]) + "\\n")
"""
"""What only the packages of the repository do: say who imports them."""


def repository_of_checkout(folder: Path, notes: Path) -> str:
    """Make a repository of the files of this checkout, as they are now, and return its url.

    Each process that imports one of its packages says so in `notes`.
    """
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in names.stdout.splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for package in PACKAGES:
        with (folder / package / "__init__.py").open("a") as file:
            file.write(TELLS.format(notes=str(notes)))
    for words in (["init", "--initial-branch", "main"], ["add", "."], ["commit", "-m", "all"]):
        subprocess.run([*GIT, *words], cwd=folder, check=True, capture_output=True)
    return f"file://{folder}"


def pull_steps(repository: str) -> list[dict[str, Any]]:
    """Return the steps of the page, with this repository."""
    [block] = re.findall(r"^```yaml pull\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    [step] = yaml.safe_load(block)["pull"]
    [(name, inputs)] = step.items()
    return [{name: inputs | {"repository": repository}}]


def test_a_run_uses_the_code_of_the_repository_and_no_checkout(
    tmp_path: Path, prefect_server: str
) -> None:
    """The venv has the same packages, of this checkout: by them alone it would run as well."""
    url = repository_of_checkout(tmp_path / "repository", tmp_path / "notes")
    (tmp_path / "work").mkdir()
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(
            client.create_flow(training_job),
            "from-git",
            entrypoint="flows.training_job.training_job",
            pull_steps=pull_steps(url),
        )
        run = client.create_flow_run_from_deployment(
            deployment, parameters={"job": make_job(tmp_path / "job")}
        )
        env = os.environ | {"PREFECT_API_URL": prefect_server}
        command = [sys.executable, "-m", "prefect", "flow-run", "execute", str(run.id)]

        subprocess.run(command, cwd=tmp_path / "work", env=env, check=True, capture_output=True)

        state = client.read_flow_run(run.id).state
        client.delete_deployment(deployment)
    assert state is not None
    assert state.is_completed(), state.message
    assert (tmp_path / "job" / "out" / "result.json").read_text() == "42"
    told = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    assert {package for package, words in told if "prefect.engine" in words} == set(PACKAGES)
    words = [word for _, words in told for word in words]
    started = {Path(word).name for word in words if "/trainjob/launch/" in word}
    assert started == {"supervisor.py", "bootstrap.py"}
