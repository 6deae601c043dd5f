"""A real PostgreSQL with an empty database of its own, by the package `postgresql` of Debian."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.waiting import PATIENCE_S, wait_until

_OF_DEBIAN = Path("/usr/lib/postgresql")  # not on PATH


@contextmanager
def running_postgres() -> Iterator[str]:
    """Run PostgreSQL and give the url of its database, as Prefect takes it."""
    initdb = _found("initdb")
    # It refuses to run as root, and its user has to reach its folder.
    user = _user()
    home = Path(tempfile.mkdtemp(prefix="test-postgres-"))
    if user:
        shutil.chown(home, user)
    try:
        init = [initdb, "-D", str(home / "data"), "-U", "prefect", "-A", "trust", "--no-sync"]
        subprocess.run(init, cwd=home, user=user, check=True, capture_output=True)
        port = free_port()
        command = [_found("postgres"), "-D", str(home / "data"), "-k", str(home)]
        command += ["-h", "127.0.0.1", "-p", str(port), "-F"]  # what it has is not kept
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, cwd=home, user=user, stdout=quiet, stderr=quiet) as server:
            try:
                wait_until(lambda: _answers(port))
                yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
            finally:
                server.send_signal(signal.SIGINT)  # ends those who are connected
                server.wait(PATIENCE_S)
    finally:
        shutil.rmtree(home)


def _found(name: str) -> str:
    folders = sorted(_OF_DEBIAN.glob("[0-9]*/bin"), reverse=True)
    path = os.pathsep.join([os.environ["PATH"], *map(str, folders)])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"PostgreSQL is not installed: no {name}")
    return found


def _user() -> str | None:
    if os.getuid():
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _answers(port: int) -> bool:
    with suppress(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False
