"""The README does what it says: every command in it is run, every quoted line is compared.

Blocks of the README are marked after their language: `file=PATH` is written, `console` is typed
and its output compared line by line (numbers, ids and this machine's paths may differ), `run` is
executed as Python. Everything happens in a copy of the checkout. What is marked `serve`, and what
is pressed in the browser, is the matter of tests/e2e/test_browser.py.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.reference import job_file_reference
from trainjob.catalogue import rules

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
_BLOCK = re.compile(r"^```(\w+)[ ]?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
_VARYING = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d+(?:\.\d+)?(?:e-?\d+)?")


@dataclass
class Block:
    language: str
    mark: str
    text: str


def blocks() -> list[Block]:
    return [Block(*found) for found in _BLOCK.findall((ROOT / "README.md").read_text())]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a fresh clone with its .venv, without copying either."""
    folder = tmp_path_factory.mktemp("docs") / "checkout"
    folder.mkdir()
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in {name.partition("/")[0] for name in names}:
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


@pytest.mark.timeout(1500)
def test_every_command_of_the_readme_does_what_the_readme_shows(
    checkout: Path, tmp_path: Path, prefect_server: str
) -> None:
    env = os.environ | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "200",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    }
    run_id = ""
    for block in blocks():
        if block.mark.startswith("file="):
            file = checkout / block.mark.removeprefix("file=")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
        elif block.mark == "run":
            done = subprocess.run(
                [sys.executable, "-c", block.text],
                cwd=checkout,
                env=env,
                capture_output=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr.decode()
        elif block.language == "console" and block.mark != "serve":
            for command, quoted in _typed(block.text):
                run_id = _check(checkout, command, quoted, block.mark, env, run_id) or run_id
                # The first command has a temporary server of its own; to start one for each of the
                # others takes longer than all that they do.
                env["PREFECT_API_URL"] = prefect_server


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    links = [link for link in _LINK.findall(page.read_text()) if "://" not in link]

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_reference_of_the_job_file_is_that_of_the_model() -> None:
    page = ROOT / "docs" / "job-file.md"

    assert page.read_text() == job_file_reference() + "\n", (
        "run: python -m flows schema --markdown > docs/job-file.md"
    )


def test_the_page_of_the_check_has_every_rule_with_an_id_of_its_own() -> None:
    texts = (file.read_text() for file in (ROOT / "trainjob").rglob("*.py"))
    ids = {found for text in texts for found in re.findall(r'\bid="([a-z-]+)"', text)}
    page = (ROOT / "docs" / "check.md").read_text()

    assert sorted(found for found in ids if f"`{found}`" not in page) == []


def test_the_readme_counts_the_failures_that_have_a_name() -> None:
    assert f"{len(rules())} such failures" in (ROOT / "README.md").read_text()


def test_the_store_of_the_readme_can_be_saved_and_used(
    prefect_server: str, s3: Any, checkout: Path
) -> None:
    [code] = [block.text for block in blocks() if block.mark == "store"]
    bucket = s3.new_bucket()
    s3.put(bucket, "data/numbers.txt", b"1 2 3")
    code = code.replace("http://127.0.0.1:8333", s3.endpoint_url)
    code = code.replace('"my-key"', '"admin-key"').replace('"my-secret"', '"admin-secret"')
    job = checkout / "s3-job.yaml"
    job.write_text(
        "name: x\nalgorithm: {kind: command, code: {url: docs}, command: ls}\n"
        f"inputs: [{{name: d, url: 's3://{bucket}/data/'}}]\nstore: lab-store\n"
    )
    env = os.environ | {"PREFECT_API_URL": prefect_server}
    subprocess.run([sys.executable, "-c", code], cwd=checkout, env=env, check=True)

    command = [sys.executable, "-m", "flows", "check", str(job)]
    done = subprocess.run(
        command, cwd=checkout, env=env, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "admin-secret" not in done.stdout + done.stderr


def _typed(text: str) -> list[tuple[str, list[str]]]:
    """Return the commands of a console block, each with the lines that are shown below it."""
    typed: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            typed.append((line[2:], []))
        elif line.strip() not in ("", "…"):
            typed[-1][1].append(line)
    return typed


def _check(
    checkout: Path, command: str, quoted: list[str], mark: str, env: dict[str, str], run_id: str
) -> str | None:
    """Run a command, compare its output, and return the id of the run in it."""
    # The id of a run in the README is that of the run whose output is quoted there.
    words = [re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", run_id, word) for word in shlex.split(command)]
    if words[0] == "make":
        words[1:1] = ["--no-print-directory", "-o", ".venv/.installed"]
    done = subprocess.run(
        words,
        cwd=checkout,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == int(mark.removeprefix("exit=") or 0), output
    shown = iter(_normal(line, checkout) for line in output.splitlines())
    for line in quoted:
        # `in` on the iterator consumes it: quoted lines must come in the order of the output.
        assert _normal(line, checkout) in shown, f"not printed (in this order): {line!r}\n{output}"
    found = re.search(r"^  run +(\S+)$", output, re.MULTILINE)
    return found[1] if found else None


def _normal(line: str, checkout: Path) -> str:
    for path in (str(checkout), "/home/me/trainjob"):
        line = line.replace(path, "CHECKOUT")
    line = re.sub(r"\S*/(?:\.trainjob/)?runs/(?!digits)", "WORK/", line)
    return " ".join(_VARYING.sub("N", line).split())
