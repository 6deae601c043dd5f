"""A machine of the tests: a real server and real workers as processes of their own."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from deployments.serve import LEASE_STORAGE, ON_SQLITE
from tests.ports import free_port
from tests.prefect_homes import fill_home
from tests.serving import wait_for
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
_ONE_AT_A_TIME = threading.Lock()
_ON_SQLITE = {**ON_SQLITE, "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASE_STORAGE}


class Machine:
    """A server and a worker as processes of their own, which can be killed one by one.

    Args:
        folder: Where everything of it is: the home of Prefect, the runs, what the processes say.
        env: What its processes have in their environment.
        server_env: What they have of settings of the server.

    Attributes:
        env: The whole environment of its processes, and of who sits in front of it.
    """

    def __init__(
        self, folder: Path, env: dict[str, str], server_env: Mapping[str, str] = _ON_SQLITE
    ) -> None:
        port = free_port()
        self.folder = folder
        home = folder / "prefect"
        if server_env is _ON_SQLITE:
            fill_home(home)
        else:
            home.mkdir(parents=True)
        self.api_url = f"http://127.0.0.1:{port}/api"
        self.env = {
            **os.environ,
            **env,
            **server_env,
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_CLIENT_MAX_RETRIES": "7",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "TRAINJOB_HOME": str(ROOT),
            "TRAINJOB_WORKDIR": str(folder / "runs"),
        }
        self._others: list[subprocess.Popen[bytes]] = []
        self.server = self._start_server()
        register = [sys.executable, "-m", "deployments.register"]
        done = subprocess.run(
            register, cwd=ROOT, env=self.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        self.worker = self._start_worker()

    def restart_server(self) -> None:
        self.server.kill()
        self.server.wait()
        self.server = self._start_server()

    def kill_worker(self) -> None:
        self.worker.kill()
        self.worker.wait()

    def add_worker(self) -> None:
        """Start another worker of the same pool, and of the same name."""
        self._others.append(self._start_worker())

    def stop_workers(self) -> None:
        """Stop all workers as a service manager does."""
        for worker in (*self._others, self.worker):
            worker.terminate()
            worker.wait(PATIENCE_S)

    def end(self) -> None:
        processes = [*self._others, self.worker, self.server]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(PATIENCE_S)
        for pid in processes_with(os.fsencode(self.folder)):  # finishers, which look out for long
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _start_server(self) -> "subprocess.Popen[bytes]":
        server = self._start("prefect", "server", "start")
        wait_for(self._is_healthy, server, self.folder / "server.log")
        return server

    def _start_worker(self) -> "subprocess.Popen[bytes]":
        return self._start("prefect", "worker", "start", "--pool", "cpu", "--name", "worker")

    def _start(self, *words: str) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{words[1]}.log").open("ab") as log:
            command = [sys.executable, "-m", *words]
            return subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=log, stderr=log)

    def _is_healthy(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.api_url}/health", timeout=5).is_success
        return False


def in_front_of(api_url: str) -> AbstractContextManager[object]:
    """Have this process talk to a server, as patiently as flows do: SQLite may be busy for long."""
    return temporary_settings({PREFECT_API_URL: api_url, PREFECT_CLIENT_MAX_RETRIES: 7})


def begin_run(pool: str, job: dict[str, Any]) -> FlowRun:
    """Have a job run by the deployment of a pool, once however often a busy server is asked."""
    with _ONE_AT_A_TIME:
        run = run_deployment(
            f"training-job/{pool}", parameters={"job": job}, timeout=0, idempotency_key=str(uuid4())
        )
    assert isinstance(run, FlowRun)
    return run


def processes_with(word: bytes) -> list[int]:
    """Return the processes that have the word on their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if word in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found
