"""A platform to measure: a server on SQLite or PostgreSQL with our deployments, and one worker."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import httpx
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings
from running import ROOT, Server, running_server
from usage import used_by

_DEPLOYMENT = "training-job/cpu"
_ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_TIMEOUT_S = 600.0
_POLL_S = 0.5
_OF_SQLITE = {
    # As `make serve` sets them.
    "PREFECT_SERVER_EVENTS_MESSAGING_BROKER": "deployments.patient_events",
    "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "deployments.patient_events",
}


@dataclass(frozen=True, slots=True)
class Database:
    """Where a server keeps what it knows.

    Attributes:
        name: What tables call it.
        settings: What the server has to know of it.
        pid: Its process; None: it is a file.
    """

    name: str
    settings: dict[str, str]
    pid: int | None = None


SQLITE = Database("SQLite", _OF_SQLITE)


class Platform:
    """A server with our deployments and a worker of the pool cpu.

    Args:
        server: The server.
        database: Where it keeps what it knows.
        client: Asks the server; who made it closes it.
    """

    def __init__(self, server: Server, database: Database, client: httpx.Client) -> None:
        self.api_url = server.api_url
        self._pids = [server.pid, *([database.pid] if database.pid else [])]
        self._http = client

    def submit(self, job: Mapping[str, Any]) -> str:
        """Have a job run as a program of a user does, and return the id of the run."""
        with temporary_settings({PREFECT_API_URL: self.api_url}):
            run = run_deployment(_DEPLOYMENT, parameters={"job": dict(job)}, timeout=0)
        return str(cast(FlowRun, run).id)

    def wait(self, run_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return runs when all have ended.

        Raises:
            RuntimeError: One has not completed.
            TimeoutError: They do not end.
        """
        deadline = time.monotonic() + _TIMEOUT_S
        while len(runs := self._ended(run_ids)) < len(run_ids):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(runs)} of {len(run_ids)} runs ended")
            time.sleep(_POLL_S)
        for run in runs:
            if run["state"]["type"] != "COMPLETED":
                raise RuntimeError(str(run["state"]))
        return runs

    def times_of(self, run_id: str) -> dict[str, float]:
        """Return when a run was first in each of its states, as seconds since 1970."""
        states = self._http.get("/flow_run_states/", params={"flow_run_id": run_id}).json()
        return {state["name"]: _seconds(state["timestamp"]) for state in reversed(states)}

    def server_cpu_s(self) -> float:
        """Return the processor time of the server and its database so far."""
        return sum(used.cpu_s for pid in self._pids for used in used_by(pid).values())

    def has_worker(self) -> bool:
        """Tell whether a worker is online."""
        answer = self._http.post("/work_pools/cpu/workers/filter", json={})
        return any(worker["status"] == "ONLINE" for worker in answer.json())

    def _ended(self, run_ids: Sequence[str]) -> list[dict[str, Any]]:
        wanted = {"flow_runs": {"id": {"any_": list(run_ids)}}, "limit": 200}
        try:
            answer = self._http.post("/flow_runs/filter", json=wanted)
        except httpx.TimeoutException:  # SQLite under load; `wait` gives up in time
            return []
        answer.raise_for_status()
        return [run for run in answer.json() if run["state"]["type"] in _ENDED]


@contextmanager
def running_platform(
    folder: Path, database: Database, num_at_once: int, env: Mapping[str, str]
) -> Iterator[Platform]:
    """Run a server, register everything with it, and run a worker, until the block ends.

    Args:
        folder: Where everything goes; it is made.
        database: Where the server keeps what it knows.
        num_at_once: How many runs the worker may have at once.
        env: More of the environment of the worker.
    """
    folder.mkdir()
    with (
        running_server(folder, settings=database.settings) as server,
        httpx.Client(base_url=server.api_url, timeout=60) as client,
    ):
        environment = {
            **os.environ,
            **env,
            "PREFECT_API_URL": server.api_url,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "TRAINJOB_HOME": str(ROOT),
            "TRAINJOB_WORKDIR": str(folder / "runs"),
        }
        register = [sys.executable, "-m", "deployments.register"]
        subprocess.run(register, cwd=ROOT, env=environment, check=True, capture_output=True)
        platform = Platform(server, database, client)
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "cpu"]
        command += ["--limit", str(num_at_once), "--install-policy", "never"]
        with (folder / "worker.log").open("wb") as log:
            worker = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            while not platform.has_worker():
                time.sleep(_POLL_S)
            yield platform
        finally:
            worker.terminate()
            worker.wait(60)


@contextmanager
def running_postgres() -> Iterator[Database | None]:
    """Run PostgreSQL with an empty database of its own; None: it is not on this machine."""
    initdb, postgres = shutil.which("initdb"), shutil.which("postgres")
    if initdb is None or postgres is None:
        yield None
        return
    # It refuses to run as root, and its user has to reach its folder.
    user = _user_for_postgres()
    home = Path(tempfile.mkdtemp(prefix="bench-postgres-"))
    if user:
        shutil.chown(home, user)
    try:
        data = home / "data"
        init = [initdb, "-D", str(data), "-U", "prefect", "-A", "trust"]
        subprocess.run(init, cwd=home, user=user, check=True, capture_output=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [postgres, "-D", str(data), "-k", str(home), "-h", "127.0.0.1", "-p", str(port)]
        quiet = subprocess.DEVNULL
        server = subprocess.Popen(command, cwd=home, user=user, stdout=quiet, stderr=quiet)
        try:
            _wait_for_port(port, server)
            url = f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
            settings = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}
            yield Database("PostgreSQL", settings, server.pid)
        finally:
            server.send_signal(signal.SIGINT)  # ends those who are connected
            server.wait(60)
    finally:
        shutil.rmtree(home)


def _user_for_postgres() -> str | None:
    if os.getuid():
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _wait_for_port(port: int, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"postgres ended with {server.returncode}")


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
