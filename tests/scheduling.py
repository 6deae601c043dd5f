"""In which order the files of tests are given to the processes that run them."""

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

# Each starts a server and workers of its own. Two at a time make each other's SQLite refuse
# requests for more than a minute, so they come one after the other.
_OWN_SERVERS = (
    "tests/e2e/test_killed_flows.py",
    "tests/e2e/test_worker_faults.py",
    "tests/e2e/test_server_and_worker.py",
    "tests/e2e/test_browser.py",
    "tests/e2e/test_secrets.py",
    "tests/e2e/test_events.py",
    "tests/e2e/test_postgres.py",
)
# Beside the servers first what needs one process, and what takes long before what does not: a long
# file that begins last has the end for itself.
_ORDER = ("tests/core/", "tests/e2e/", "tests/test_", "tests/flows/", "tests/launch/")


class ServersFirst(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Keeps the tests of a file together, and those of the files with servers of their own."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "own servers" if file in _OWN_SERVERS else file


class Scheduling:
    """A plugin for sessions with several processes."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Sort the files; the order within a file stays."""
        items.sort(key=lambda item: _rank(item.nodeid.partition("::")[0]))

    @pytest.hookimpl
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> ServersFirst:
        """Distribute the tests in their order."""
        config.option.loadscopereorder = False
        return ServersFirst(config, log)


def _rank(file: str) -> int:
    if file in _OWN_SERVERS:
        return _OWN_SERVERS.index(file) - len(_OWN_SERVERS)
    folders = (rank for rank, start in enumerate(_ORDER) if file.startswith(start))
    return next(folders, len(_ORDER))
