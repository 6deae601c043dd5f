"""The ways in which the benchmarks run a script: by bare torchrun, and as a job on a server."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
NUM_RANKS = 2


@dataclass(frozen=True, slots=True)
class Server:
    """A Prefect server of our own.

    Attributes:
        api_url: Its API.
        pid: Its process.
        log: Has a line for each call of the API if it is told to note them.
    """

    api_url: str
    pid: int
    log: Path


def start_bare(
    folder: Path, script: Path, arguments: Sequence[object], *, is_unbuffered: bool = False
) -> subprocess.Popen[bytes]:
    """Start the script under torchrun with the threads that a run would give it.

    What the ranks write goes to a file, which is the fastest that there is.

    Args:
        folder: Where that file goes.
        script: The script.
        arguments: Its arguments.
        is_unbuffered: Whether Python writes each line at once, as it does in a run.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // NUM_RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(NUM_RANKS), str(script), *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    # An empty value is none to Python.
    env["PYTHONUNBUFFERED"] = "1" if is_unbuffered else ""
    with (folder / "bare.log").open("wb") as log:
        return subprocess.Popen(command, env=env, stdout=log, stderr=log)


def start_flow(folder: Path, job: dict[str, Any], api_url: str) -> subprocess.Popen[bytes]:
    """Start a job by ``python -m flows run``.

    Args:
        folder: Where job file, report and what a person would read go.
        job: The job.
        api_url: The server; empty: the temporary one.
    """
    (folder / "job.json").write_text(json.dumps(job))
    env = os.environ | {
        "PREFECT_HOME": str(folder.parent / "prefect"),
        "TRAINJOB_WORKDIR": str(folder.parent / "runs"),
    }
    env.pop("PREFECT_API_URL", None)
    if api_url:
        env["PREFECT_API_URL"] = api_url
    command = [sys.executable, "-m", "flows", "run", "--json", str(folder / "job.json")]
    with (folder / "report.json").open("wb") as report, (folder / "story.log").open("wb") as story:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=report, stderr=story)


def report_of(process: subprocess.Popen[bytes], folder: Path) -> dict[str, Any]:
    """Wait for the end of a run and return its report.

    Raises:
        RuntimeError: The run did not complete.
    """
    if process.wait():
        raise RuntimeError((folder / "story.log").read_text()[-4000:])
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def job_of(script: Path, train_url: Path, **changes: Any) -> dict[str, Any]:
    """Return a job that runs a script on the ranks."""
    job: dict[str, Any] = {
        "name": "bench",
        "algorithm": {"code": {"url": str(script.parent)}, "boot_file": script.name},
        "outputs": [{"name": "train_url", "url": str(train_url)}],
        "resources": {"processes_per_node": NUM_RANKS},
        "launcher": "torchrun",
    }
    return job | changes


@contextmanager
def running_server(
    folder: Path, *, notes_calls: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run a Prefect server with its data below `folder`.

    Args:
        folder: Where its data and its log go.
        notes_calls: Whether its log has a line for each call of its API.
        settings: More of its environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "PREFECT_HOME": str(folder / "server"),
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "INFO" if notes_calls else "WARNING",
        **(settings or {}),
    }
    command = [sys.executable, "-m", "prefect", "server", "start"]
    log_file = folder / "server.log"
    with log_file.open("wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/api"
    try:
        deadline = time.monotonic() + 120
        while not _is_healthy(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log_file.read_text())
            time.sleep(0.2)
        yield Server(url, server.pid, log_file)
    finally:
        server.terminate()
        server.wait(30)


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.TransportError:
        return False
