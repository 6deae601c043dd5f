"""Environments with what requirements.txt asks for: made once, shared, never in part."""

import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.core.environments.wheels import make_nosy_source, make_source, make_wheel
from tests.jobs import make_job
from tests.waiting import PATIENCE_S
from trainjob.environments.asked import asked_by, requirements_problems
from trainjob.environments.folder import (
    MARKER,
    environments,
    environments_folder,
    remove_environment,
    using,
)
from trainjob.environments.provide import holding_environment, provide_environment
from trainjob.errors import RequirementsFailed, RequirementsUnavailable
from trainjob.job import TrainingJob
from trainjob.launch.environment import search_path
from trainjob.launch.sandbox import sandbox_problems
from trainjob.storage.cache.owner import Owner
from trainjob.workspace import Workspace

MakeRun = Callable[..., Workspace]

_WHY_NO_SANDBOX = [problem.found for problem in sandbox_problems(search_path(os.environ))]


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """Return a function from requirements to the workspace of a run with such code."""
    make_wheel(tmp_path / "wheels", "tool", "1.0", "def main():\n    print('tool')\n", "main")
    make_wheel(tmp_path / "wheels", "tool", "2.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()

    def make(requirements: str | None, run_id: str = "1") -> Workspace:
        workspace = Workspace.of_run(run_id)
        workspace.code.mkdir(parents=True)
        if requirements is not None:
            (workspace.code / "requirements.txt").write_text(requirements)
        return workspace

    return make


@pytest.fixture
def job(tmp_path: Path) -> TrainingJob:
    return TrainingJob.parse(make_job(tmp_path, environment={"requirements": True}))


def say(workspace: Workspace, code: str) -> str:
    """Return what code prints in the environment of a run."""
    python = str(workspace.environment / "bin" / "python")
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_second_run_finds_what_the_first_installed(
    make_run: MakeRun, job: TrainingJob, tmp_path: Path
) -> None:
    first = make_run("tool==1.0  # what we need\n\npyyaml\n")
    second = make_run("# the same\ntool==1.0\npyyaml\n", "2")

    installed = provide_environment(job, first)
    shutil.rmtree(tmp_path / "wheels")  # pip would find nothing any more
    found = provide_environment(job, second)

    assert str(installed).startswith("1 package, ")
    assert str(installed).endswith(", installed")
    assert str(found).endswith(", from cache")
    assert installed.root == found.root
    assert not (second.logs / "requirements.log").exists()
    assert say(second, "import tool, yaml; print(tool.version, yaml.__name__)") == "1.0 yaml"
    command = subprocess.run(
        [second.environment / "bin" / "tool"], capture_output=True, text=True, check=True
    )
    assert command.stdout == "tool\n"


def test_other_requirements_or_other_packages_of_the_worker_have_another_environment(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, two = make_run("tool==1.0\n"), make_run("tool==2.0\n", "2")
    here = asked_by(one.code).key
    (tmp_path / "site-packages" / "numpy-1.0.dist-info").mkdir(parents=True)

    assert asked_by(two.code).key != here
    assert asked_by(one.code).key == here
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site-packages")])
    assert asked_by(one.code).key != here


def test_wheels_in_the_code_are_installed_and_count(make_run: MakeRun) -> None:
    run = make_run("-f wheels\n-r more.txt\n")
    (run.code / "more.txt").write_text("./wheels/own-1.0-py3-none-any.whl\n")
    wheel = make_wheel(run.code / "wheels", "own", "1.0", "value = 1\n")
    before = asked_by(run.code).key

    make_wheel(wheel.parent, "own", "1.0", "value = 2\n")

    assert asked_by(run.code).key != before
    assert not requirements_problems(run.code)


def test_files_at_a_url_may_be_included(make_run: MakeRun) -> None:
    lines = "-c https://example.org/c.txt\n-r https://example.org/r.txt\n"

    assert not requirements_problems(make_run(lines).code)


def test_other_code_with_requirements_from_elsewhere_has_the_same_environment(
    make_run: MakeRun,
) -> None:
    run = make_run("--pre\n--no-binary tool\ntool @ https://example.org/x.whl\n")
    before = asked_by(run.code).key

    (run.code / "train.py").write_text("print()\n")

    assert asked_by(run.code).key == before


def test_of_two_runs_at_once_one_installs_and_both_have_it(
    make_run: MakeRun, job: TrainingJob
) -> None:
    runs = [make_run("tool\n", "1"), make_run("tool\n", "2")]

    with ThreadPoolExecutor() as threads:
        provided = list(threads.map(lambda run: provide_environment(job, run), runs))

    assert sorted(each.was_there for each in provided) == [False, True]
    assert len([run for run in runs if (run.logs / "requirements.log").exists()]) == 1
    assert [say(run, "import tool; print(tool.version)") for run in runs] == ["2.0", "2.0"]
    assert not list(environments_folder().incoming.iterdir())


def test_what_cannot_be_installed_is_one_error_with_the_words_of_pip(
    make_run: MakeRun, job: TrainingJob
) -> None:
    run = make_run("no-such-package==1.0\n")
    folder = environments_folder()
    folder.prepare()
    left = folder.incoming / f"{'0' * 32}-{Owner.nobody()}-killed"
    left.mkdir()

    with pytest.raises(RequirementsFailed) as raised:
        provide_environment(job, run)

    assert not raised.value.retryable
    assert str(raised.value).startswith(
        "asked for what requirements.txt names, found pip ended by exit code 1; correct the file"
    )
    assert "No matching distribution found for no-such-package==1.0" in str(raised.value)
    assert not list(folder.incoming.iterdir())
    assert not list(folder.published.iterdir())


def test_an_index_that_does_not_answer_is_worth_another_try(
    make_run: MakeRun, job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")

    with pytest.raises(RequirementsUnavailable, match="check the index of pip") as raised:
        provide_environment(job, make_run("other-package\n"))

    assert raised.value.retryable


def test_a_stop_ends_pip_and_leaves_nothing(
    make_run: MakeRun, job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")

        def interrupt() -> None:
            with closing(silent.accept()[0]):
                os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            provide_environment(job, make_run("other-package\n"))
        thread.join()

    assert not list(environments_folder().incoming.iterdir())


def test_an_environment_is_kept_while_a_run_uses_it_and_made_again_when_it_is_gone(
    make_run: MakeRun, job: TrainingJob
) -> None:
    run, folder = make_run("tool==1.0\n"), environments_folder()
    root = provide_environment(job, run).root

    with holding_environment(job, run):
        [made] = environments(folder)
        assert made.is_used()
        assert not remove_environment(folder, made)
    assert remove_environment(folder, made)
    with using(folder, made.key) as gone:
        assert gone is None

    with holding_environment(job, run):
        assert say(run, "import tool; print(tool.version)") == "1.0"
    assert environments(folder)[0].root == root


def test_a_run_waits_for_who_looks_whether_an_environment_is_used(
    make_run: MakeRun, job: TrainingJob
) -> None:
    run, folder = make_run("tool==1.0\n"), environments_folder()
    root = provide_environment(job, run).root
    begins, ends = threading.Event(), threading.Event()

    def hold() -> None:
        with holding_environment(job, run):
            begins.set()
            ends.wait()

    # As `is_used` and `remove_environment` do, for a moment.
    opened = os.open(root, os.O_RDONLY)
    fcntl.flock(opened, fcntl.LOCK_EX)
    thread = threading.Thread(target=hold)
    thread.start()
    began_before = begins.wait(0.2)
    os.close(opened)
    began = begins.wait(PATIENCE_S)
    [made] = environments(folder)
    was_used, was_removed = made.is_used(), remove_environment(folder, made)
    ends.set()
    thread.join()

    assert (began_before, began) == (False, True)
    assert (was_used, was_removed) == (True, False)


def test_an_environment_that_is_gone_is_neither_used_nor_an_error(
    make_run: MakeRun, job: TrainingJob
) -> None:
    folder = environments_folder()
    provide_environment(job, make_run("tool==1.0\n"))
    [made] = environments(folder)

    assert remove_environment(folder, made)
    assert not made.is_used()
    assert not remove_environment(folder, made)
    assert not environments(folder)


@pytest.mark.parametrize("marker", ["", "[]"])
def test_what_is_there_of_an_environment_that_a_crash_spoiled_gives_way(
    make_run: MakeRun, job: TrainingJob, marker: str
) -> None:
    run = make_run("tool==1.0\n")
    spoiled = environments_folder().published / asked_by(run.code).key
    spoiled.mkdir(parents=True)
    (spoiled / MARKER).write_text(marker)

    provided = provide_environment(job, run)

    assert provided.root == spoiled
    assert say(run, "import tool; print(tool.version)") == "1.0"


def test_nothing_can_be_written_into_an_environment_and_it_is_removed_all_the_same(
    make_run: MakeRun, job: TrainingJob
) -> None:
    root = provide_environment(job, make_run("tool==1.0\n")).root
    [site] = root.glob("lib/python*/site-packages")
    python = Path(sys.executable).resolve()

    assert {stat.S_IMODE(path.stat().st_mode) & 0o222 for path in (site, root / "bin")} == {0}
    assert not [p for p in site.rglob("*") if not p.is_symlink() and p.stat().st_mode & 0o222]
    assert python.stat().st_mode & 0o200  # to which bin/python leads
    [made] = environments(environments_folder())
    assert remove_environment(environments_folder(), made)
    assert not root.exists()
    assert not list(environments_folder().trash.iterdir())


def test_what_was_left_half_removed_goes_and_what_others_made_stays(
    make_run: MakeRun, job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = environments_folder()
    folder.prepare()
    (folder.incoming / "foreign").mkdir()
    (folder.trash / "half").mkdir()
    monkeypatch.setattr("trainjob.storage.cache.folder._TRASH_S", -1.0)  # in place of an hour

    provide_environment(job, make_run("tool==1.0\n"))

    assert [left.name for left in folder.incoming.iterdir()] == ["foreign"]
    assert not (folder.trash / "half").exists()


def test_a_package_of_the_code_is_built_in_a_copy_of_it(
    make_run: MakeRun, job: TrainingJob
) -> None:
    run = make_run("./own\n")
    make_source(run.code / "own", "pathlib.Path('build').mkdir()")

    provide_environment(job, run)

    assert say(run, "import own; print(own.__name__)") == "own"
    assert sorted(p.name for p in (run.code / "own").iterdir()) == ["backend.py", "pyproject.toml"]
    assert not (run.private / "code").exists()


@pytest.mark.skipif(bool(_WHY_NO_SANDBOX), reason=" ".join(_WHY_NO_SANDBOX))
def test_a_build_in_a_sandbox_writes_in_its_tree_and_leads_no_write_out_of_it(
    make_run: MakeRun, job: TrainingJob, tmp_path: Path
) -> None:
    precious = tmp_path / "home" / "precious"
    precious.write_text("mine")
    link = f"os.symlink({str(precious)!r}, os.path.join(os.environ['VIRTUAL_ENV'], {MARKER!r}))"
    run = make_run("./own\n")
    make_source(run.code / "own", f"pathlib.Path('build').mkdir(); {link}")

    root = provide_environment(job.model_copy(update={"sandbox": True}), run).root

    assert precious.read_text() == "mine"
    assert not (root / MARKER).is_symlink()
    assert say(run, "import own; print(own.__name__)") == "own"


def test_a_build_that_puts_a_link_in_place_of_bin_is_refused(
    make_run: MakeRun, job: TrainingJob, tmp_path: Path
) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    move = f"os.rename(bin, {elsewhere!r}); os.symlink({elsewhere!r}, bin)"
    run = make_run("./own\n")
    make_source(run.code / "own", f"bin = os.environ['VIRTUAL_ENV'] + '/bin'; {move}")

    with pytest.raises(RequirementsFailed, match="found its folder bin replaced by a link"):
        provide_environment(job, run)


@pytest.mark.skipif(bool(_WHY_NO_SANDBOX), reason=" ".join(_WHY_NO_SANDBOX))
def test_what_pip_builds_for_a_job_in_a_sandbox_sees_no_secret(
    make_run: MakeRun, job: TrainingJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "my secret")
    secret = tmp_path / "home" / "secret"
    secret.write_text("my password")
    run = make_run("./nosy\n")
    make_nosy_source(run.code / "nosy", secret)

    provide_environment(job.model_copy(update={"sandbox": True}), run)

    seen = say(run, "import nosy; print(nosy.seen, nosy.names)")
    assert seen == "FileNotFoundError []"


@pytest.mark.parametrize(
    ("requirements", "asked", "found"),
    [
        (None, "true", "no requirements.txt in the code"),
        ("-c no.txt\n", "-c no.txt (requirements.txt:1)", "no such file in the code"),
        ("-e .\n", "-e . (requirements.txt:1)", "an editable install"),
        ("-r ../x\n", "-r ../x (requirements.txt:1)", "no such file in the code"),
        (
            "\ntorch==1.0\n",
            "torch==1.0 (requirements.txt:2)",
            f"version {version('torch')} of the worker, which is not replaced",
        ),
        ("mpi4py @ https://example.org/x.whl\n", "mpi4py @", f"version {version('mpi4py')}"),
    ],
)
def test_what_a_run_would_refuse_is_known_before(
    make_run: MakeRun, job: TrainingJob, requirements: str | None, asked: str, found: str
) -> None:
    run = make_run(requirements)

    [problem] = requirements_problems(run.code)
    with pytest.raises(RequirementsFailed) as raised:
        provide_environment(job, run)

    assert problem.asked.startswith(asked)
    assert problem.found.startswith(found)
    assert str(raised.value) == str(problem)


@pytest.mark.parametrize("line", ["torch", "torch>=2.0", "torch==1.0; python_version < '3'"])
def test_the_workers_torch_may_be_asked_for(make_run: MakeRun, line: str) -> None:
    assert not requirements_problems(make_run(f"{line}\n").code)
