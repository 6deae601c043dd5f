"""docs/operations.md: its commands exist, its settings are Prefect's, its backup restores."""

import os
import re
import shlex
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml
from prefect.settings import Settings
from prefect.settings.legacy import _get_valid_setting_names

from deployments import drain, leave, register
from deployments.serve import _WORKER, _environment
from tests.operations_page import BLOCKS, ENV_FILES, PAGE
from trainjob.limits import Limits
from trainjob.registry.folder import IN_PREFECT

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
UNITS = [text for language, mark, text in BLOCKS if (language, mark) == ("ini", "unit")]
[CPU, *_] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
[INSTALLATION] = [text for language, mark, text in BLOCKS if mark == "install"]
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


def service_of(unit: str) -> dict[str, str]:
    """Return what a unit says of its service; of a key that comes twice all values, in lines."""
    section = unit.partition("[Service]\n")[2].partition("\n[")[0]
    found: dict[str, str] = {}
    for line in section.splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found[key] = f"{found[key]}\n{value}" if key in found else value
    return found


def test_a_pool_of_ones_own_is_registered_and_deployed_as_the_page_says() -> None:
    [shown] = [text for _, mark, text in BLOCKS if mark == "deployment"]

    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text() + shown)["deployments"]

    named = {deployment["name"]: deployment for deployment in deployments}
    vision = deployments[-1]
    assert vision["name"] == vision["work_pool"]["name"]
    for key in ("entrypoint", "parameters"):
        assert vision[key] == named["gpu"][key]
    [word] = re.findall(rf"`({vision['name']}=[^`]*)`", PAGE)
    assert register._pool(word).name == vision["name"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.splitlines()[1])
def test_a_service_is_installed_as_the_page_says(unit: str) -> None:
    service = service_of(unit)
    commands = [shlex.split(line, comments=True) for line in INSTALLATION.splitlines()]

    assert [words[-1] for words in commands if words[:1] == ["useradd"]] == [service["User"]]
    home = service["WorkingDirectory"]
    assert [words[-1] for words in commands if words[:2] == ["git", "clone"]] == [home]
    assert ["cd", home] in commands
    for path in service["EnvironmentFile"].splitlines():
        assert Path(path).name in ENV_FILES
        assert f"`{path}`" in PAGE


def test_the_installation_names_what_there_is_in_the_checkout() -> None:
    words = set(shlex.split(INSTALLATION, comments=True))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [extras] = re.findall(r"'\.\[([\w,]+)\]'", INSTALLATION)

    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    for name in ("constraints.txt", "examples/make_dataset.py", "deployments", "flows", "trainjob"):
        assert name in words
        assert (ROOT / name).exists()
    assert CPU["parameters"]["job"]["inputs"][0]["url"].rstrip("/") in words


def test_an_upgrade_does_again_what_the_installation_did_with_the_code() -> None:
    """Who serves may not write to the code: what is not compiled then, each process compiles."""
    [upgrade] = re.findall(r"^\*\*Upgrade\.\*\*(.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
    done = set(re.findall(r"^\.venv/bin/python -m (\w+)", INSTALLATION, re.MULTILINE))

    assert done == {"pip", "compileall"}
    assert [module for module in done if f"`{module}" not in upgrade] == []


def test_make_serve_sets_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PAGE.partition("## Settings")[2].partition("\n## ")[0]
    variables = "".join(row.split("|")[2] for row in settings.splitlines() if row.startswith("|"))
    chosen = dict(re.findall(r"`(\w+)=?([^`]*)`", variables))
    by_ones_own = {"TRAINJOB_WORKDIR", "TRAINJOB_REGISTRY"}
    for name in chosen:
        monkeypatch.delenv(name, raising=False)

    of_serve = _environment("http://127.0.0.1:4200", "4200")

    assert {name for name in chosen if name not in of_serve} == by_ones_own
    assert {name: of_serve[name] for name in chosen if chosen[name] and name in of_serve} == {
        name: value for name, value in chosen.items() if value and name not in by_ones_own
    }
    monkeypatch.setenv("TRAINJOB_REGISTRY", IN_PREFECT)
    assert _environment("", "4200")["TRAINJOB_REGISTRY"] == IN_PREFECT


def test_a_worker_is_told_where_runs_work_and_where_saved_versions_are() -> None:
    [worker] = [unit for unit in UNITS if "worker start" in unit]
    files = [Path(path).name for path in service_of(worker)["EnvironmentFile"].splitlines()]
    env = {name: value for file in files for name, value in ENV_FILES[file].items()}

    assert env["TRAINJOB_HOME"] == service_of(worker)["WorkingDirectory"]
    assert env["TRAINJOB_REGISTRY"] == IN_PREFECT
    assert env["TRAINJOB_WORKDIR"]
    settings = PAGE.partition("## Settings")[2].partition("\n## ")[0]
    assert [name for name in env if name.startswith("TRAINJOB_") and name not in settings] == []


def test_who_only_submits_gets_no_folder_of_the_workers() -> None:
    """`check` would find that it cannot be written to, for whoever is not the worker's user."""
    client = ENV_FILES["client.env"]

    assert client["TRAINJOB_REGISTRY"] == IN_PREFECT
    assert {name for name in client if name.startswith("TRAINJOB_")} == {"TRAINJOB_REGISTRY"}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.splitlines()[1])
def test_a_service_starts_modules_that_there_are_in_the_checkout_it_names(unit: str) -> None:
    service = service_of(unit)

    for key in ("ExecStart", "ExecStop"):
        if key in service:
            python, flag, module = service[key].removeprefix("-").split()[:3]
            assert (python, flag) == (f"{service['WorkingDirectory']}/.venv/bin/python", "-m")
            folder = ROOT / module.replace(".", "/")
            assert module == "prefect" or folder.with_suffix(".py").exists()


def test_the_jobs_of_a_worker_are_found_however_it_was_started() -> None:
    [pattern] = re.findall(r"python -m deployments\.leave \$\(pgrep -f '([^']*)'\)", PAGE)
    readme = re.findall(r"`TRAINJOB_HOME=\$PWD (python -m prefect worker start [^`]*)`", README)
    [unit] = [service_of(unit)["ExecStart"] for unit in UNITS if "worker start" in unit]
    ours = [*readme, " ".join(["python", *_WORKER, "--pool", "cpu"]), unit.replace("%i", "cpu")]
    others = [line.replace("--pool cpu", "--pool cpu-2") for line in ours]
    for lines, pool in ((ours, "cpu"), (others, "cpu-2")):
        lines += [f"python -m prefect worker start {word}{pool}" for word in ("-p ", "--pool=")]

    with ExitStack() as held:
        started = [held.enter_context(process_of(line)) for line in (*ours, *others)]
        found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=True)

    named = [str(process.pid) in found.stdout.split() for process in started]
    assert len(readme) == 1
    assert named == [True] * len(ours) + [False] * len(others)


@contextmanager
def process_of(line: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Give a process that is told from outside by the words of this command line."""
    words = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]
    with subprocess.Popen([*words, *line.split()[1:]], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


def test_a_service_that_has_died_by_itself_has_nothing_to_do_before_it_stops(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """systemd runs ExecStop then, too, with MAINPID unset; `-` forgives it (systemd.service(5))."""
    [stop] = [service_of(unit)["ExecStop"] for unit in UNITS if "ExecStop" in unit]
    python, _, module, *arguments = stop.split()

    code = leave.main([word for word in arguments if word != "$MAINPID"])

    assert (python[0], module, code) == ("-", "deployments.leave", 1)
    assert "so nobody was asked" in capsys.readouterr().err


def test_jobs_that_leave_have_the_time_that_their_grace_leaves_them_for_saving() -> None:
    [worker] = [service_of(unit) for unit in UNITS if "ExecStop" in unit]
    grace_s = Limits().grace.total_seconds()

    assert 2 * grace_s < leave.LEAVE_TIMEOUT_S < float(worker["TimeoutStopSec"])
    assert f"`--timeout`, {leave.LEAVE_TIMEOUT_S:g} s," in PAGE


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
