"""Of all tests: a clean environment, proof that no process is left behind, failures at once."""

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import prefect_homes
from tests.scheduling import Scheduling

pytest_plugins = ["tests.s3_server", "tests.prefect_server", "tests.digits"]

_FOREIGN = re.compile(
    r"(?:AWS|PREFECT|SLURM|TRAINJOB|TORCHELASTIC|PMI|OMPI)_.*"
    r"|(?:LOCAL_)?(?:RANK|WORLD_SIZE)|MASTER_(?:ADDR|PORT)|OMP_NUM_THREADS"
)
_RUN_MARK = b"TRAINJOB_RUN_ID="


class FailuresAtOnce:
    """Prints a failure when it comes: a session that is ended from outside has no last page."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self.terminal = terminal

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            what = f"{report.when or 'run'} of {report.nodeid}"
            self.terminal.write_line(f"\n{what} failed:", red=True)
            self.terminal.write_line(report.longreprtext)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and config.getoption("numprocesses", None):
        config.pluginmanager.register(FailuresAtOnce(terminal))
    config.pluginmanager.register(Scheduling())


@pytest.fixture(scope="session", autouse=True)
def one_database_to_copy(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have the servers of this session, and of those beside it, begin with the same database."""
    base = tmp_path_factory.getbasetemp()
    prefect_homes.share_in(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture(autouse=True)
def no_callbacks_of_the_collector() -> None:
    """What a signal handler raises within one, as that of Hypothesis, is printed and then lost."""
    gc.callbacks.clear()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if _FOREIGN.fullmatch(name):
            monkeypatch.delenv(name)
    # Without it botocore asks a cloud's metadata address for credentials.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    # Five tries, the default, take a minute: a busy server on SQLite refuses for longer.
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "7")
    monkeypatch.setenv("TRAINJOB_WORKDIR", str(tmp_path / "runs"))
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path / "registry"))


@pytest.fixture(autouse=True)
def no_process_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = _processes()
    yield
    # Only those that are new: to read what is known of all would take longer than many a test.
    left = _marked(_processes() - before, os.fsencode(tmp_path_factory.getbasetemp()))
    assert not left, f"processes of a run are left: {left}"


def _processes() -> set[str]:
    with os.scandir("/proc") as folders:
        return {folder.name for folder in folders if folder.name.isdecimal()}


def _marked(pids: set[str], ours: bytes) -> set[str]:
    """Return the processes of runs that work in this session's folders."""
    found = set()
    for folder in (Path("/proc", pid) for pid in pids):
        try:
            if _RUN_MARK in (folder / "environ").read_bytes():
                place = (folder / "cmdline").read_bytes() + os.fsencode((folder / "cwd").readlink())
                found |= {folder.name} if ours in place else set()
        except OSError:
            continue
    return found
