"""docs/operations.md: its commands exist, its settings are Prefect's, its backup restores."""

import configparser
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.settings import Settings
from prefect.settings.legacy import _get_valid_setting_names

from deployments import drain, register

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "operations.md").read_text()
_BLOCK = re.compile(r"^```(\w+)[ ]?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS: list[tuple[str, str, str]] = _BLOCK.findall(PAGE)
UNITS = [text for language, mark, text in BLOCKS if (language, mark) == ("ini", "unit")]
PARSERS: dict[str, Callable[[list[str]], object]] = {
    "deployments.register": register._parser().parse_args,
    "deployments.drain": drain._parser().parse_args,
}


def test_every_variable_of_prefect_is_one_that_it_reads() -> None:
    named = set(re.findall(r"\bPREFECT_[A-Z_]+[A-Z]\b", PAGE))
    read_elsewhere = {"PREFECT_SERVER_ENCRYPTION_KEY"}  # by prefect.server.utilities.encryption

    assert sorted(named - _get_valid_setting_names(Settings) - read_elsewhere) == []


def test_every_command_of_ours_takes_the_arguments_that_it_is_shown_with() -> None:
    lines = [line for language, _, text in BLOCKS if language == "sh" for line in text.split("\n")]
    words = [shlex.split(line) for line in lines if line.startswith("python -m deployments.")]
    shown = [found for found in words if found[2] in PARSERS]

    for _, _, module, *arguments in shown:
        PARSERS[module](arguments)

    assert {found[2] for found in shown} == set(PARSERS)


@pytest.mark.parametrize("kind", ["cpu=process", "gpu=docker", "gpu=kubernetes"])
def test_every_kind_of_pool_is_chosen_as_the_page_says(kind: str) -> None:
    [arguments] = re.findall(rf"`({kind}[^`]*)`", PAGE)

    PARSERS["deployments.register"](arguments.split())


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.splitlines()[1])
def test_a_service_starts_modules_that_there_are_in_the_checkout_it_names(unit: str) -> None:
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]  # as systemd, mind the case
    parsed.read_string(unit)

    service = parsed["Service"]
    for key in ("ExecStart", "ExecStop"):
        if key in service:
            python, flag, module = service[key].split()[:3]
            assert (python, flag) == (f"{service['WorkingDirectory']}/.venv/bin/python", "-m")
            folder = ROOT / module.replace(".", "/")
            assert module == "prefect" or folder.with_suffix(".py").exists()


def test_the_backup_is_a_database_with_what_was_in_it(tmp_path: Path) -> None:
    [backup] = [text for language, mark, text in BLOCKS if (language, mark) == ("sh", "run")]
    with sqlite3.connect(tmp_path / "prefect.db") as database:
        database.execute("CREATE TABLE run (name)")
        database.execute("INSERT INTO run VALUES ('digits')")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PREFECT_HOME": str(tmp_path), "PATH": path}

    subprocess.run(["sh", "-c", backup], cwd=tmp_path, env=env, check=True)

    with sqlite3.connect(tmp_path / "prefect-backup.db") as copy:
        assert copy.execute("SELECT name FROM run").fetchall() == [("digits",)]


def test_links_within_the_page_lead_to_its_headings() -> None:
    headings = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}

    assert sorted(set(re.findall(r"\]\(#([^)]+)\)", PAGE)) - anchors) == []
