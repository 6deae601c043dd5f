"""The Dockerfile, as a text: no image is built here. It has what the templates of pools expect."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from deployments.work_pools import Kind, base_job_template

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
LINES = [line.split() for line in TEXT.splitlines() if line and not line.startswith("#")]
COPIED = {source for words in LINES if words[0] == "COPY" for source in words[1:-1]}


def test_what_is_copied_is_in_the_checkout() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", *COPIED], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()

    assert COPIED - {path.partition("/")[0] for path in tracked} == set()


def test_nothing_else_of_the_checkout_is_sent_to_be_built() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()

    assert lines[1] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == COPIED


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_the_checkout_is_where_the_templates_of_pools_say(kind: Kind) -> None:
    env = base_job_template(kind, "cpu")["variables"]["properties"]["env"]["default"]

    assert ["ENV", f"TRAINJOB_HOME={env['TRAINJOB_HOME']}"] in LINES
    assert ["WORKDIR", "${TRAINJOB_HOME}"] in LINES


def test_all_that_a_run_imports_is_copied() -> None:
    imports = re.compile(r"^(?:from|import) (\w+)", re.MULTILINE)
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    needed = {"flows"}
    for _ in ours:
        files = [file for folder in needed for file in (ROOT / folder).rglob("*.py")]
        needed |= ours & {name for file in files for name in imports.findall(file.read_text())}

    assert needed - COPIED == set()
    assert "examples" in COPIED  # the code of the job that fills the form


def test_the_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {name for extras in re.findall(r"EXTRAS=([\w,]+)", TEXT) for name in extras.split(",")}

    assert named
    assert named - set(project["optional-dependencies"]) == set()
