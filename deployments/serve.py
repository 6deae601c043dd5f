"""A server, and a worker for every pool that this machine has devices for: ``make serve``.

That is the pool cpu, and gpu and npu where such cards are. For a laptop or a trial: the server
listens on 127.0.0.1 only, has no login and keeps its data in ``PREFECT_HOME``. Ctrl-C, or closing
the terminal, lets running jobs save and leave, then stops all processes; jobs with restarts left go
on at the next start.
"""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

import httpx

from deployments.flow_deployments import HOME
from deployments.leave import LEAVE_TIMEOUT_S, let_jobs_leave
from deployments.work_pools import PoolName
from trainjob.launch.devices import num_devices
from trainjob.launch.launch import Device

_DEVICES: dict[PoolName, Device] = {"cpu": "cpu", "gpu": "cuda", "npu": "npu"}
# A pool of containers needs an extra, which is not installed without being asked for.
_WORKER = ("-m", "prefect", "worker", "start", "--install-policy", "never")
_PR_SET_PDEATHSIG = 1
_MAX_PORT = 65535
LEASE_STORAGE = "prefect.server.concurrency.lease_storage.filesystem"
ON_SQLITE = {
    "PREFECT_SERVER_EVENTS_MESSAGING_BROKER": "deployments.patient_events",
    "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "deployments.patient_events",
}
"""Without these, a busy SQLite database costs events, and runs their restarts."""
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 40.0


def main() -> int:
    """Start everything, wait until it is stopped or a part ends, stop the rest."""
    port = os.environ.get("PREFECT_SERVER_API_PORT", "4200")
    url = f"http://127.0.0.1:{port}"
    env = _environment(url, port)
    _stop_by_signals()
    parts: list[subprocess.Popen[bytes]] = []
    try:
        _refuse_taken_port(port)
        parts.append(_start(["-m", "prefect", "server", "start"], env))
        _wait_until_healthy(url, parts[0])
        _say(f"server   {url}")
        subprocess.run(
            [sys.executable, "-m", "deployments.register"], env=env, cwd=HOME, check=True
        )
        for pool in pools_of_machine(env):
            parts.append(_start([*_WORKER, "--pool", pool], env))
            _say(f"worker   on pool {pool}, for training-job/{pool}")
        _say("ready    Ctrl-C stops all")
        while all(part.poll() is None for part in parts):
            time.sleep(0.5)
        _say("a part ended by itself; stopping the rest")
    except KeyboardInterrupt:
        _say(f"stopping; jobs have up to {LEAVE_TIMEOUT_S:g} s to save and leave")
        return 0
    except (RuntimeError, subprocess.CalledProcessError) as error:
        _say(f"could not start: {error}")
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)  # a second Ctrl-C must not end us before them
        let_jobs_leave([worker.pid for worker in parts[1:]])
        for part in reversed(parts):
            _stop(part)
    return 1


def pools_of_machine(environ: Mapping[str, str]) -> list[PoolName]:
    """Return the pools whose runs this machine has devices for.

    Args:
        environ: Where the variables that choose or hide devices are looked up.
    """
    return [pool for pool, device in _DEVICES.items() if num_devices(device, environ)]


def _stop_by_signals() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # What is ignored stays ignored: nohup wants the server to outlive its terminal.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def _environment(url: str, port: str) -> dict[str, str]:
    env = dict(os.environ) | {
        "PREFECT_API_URL": f"{url}/api",
        # --port alone leaves the UI on port 4200.
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": port,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # In a terminal, Prefect's server asks which profile should name it, and waits (3.8.8).
        "PREFECT_CLI_PROMPT": "false",
        # A trigger that is overdue at the start of the server still counts: without this, a run
        # whose process died while the server was down is Running for ever (default 60 s).
        "PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "P7D",
        **ON_SQLITE,
        # Without it a server that restarts never takes back places in quotas (in memory alone).
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASE_STORAGE,
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "TRAINJOB_HOME": str(HOME),
    }
    # A cancelled run without a process is ended after as long as a dead one is noticed.
    env.setdefault("PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS", "90")
    # The shortest that Prefect has: a dead run is noticed after three of them.
    env.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
    # 17 minutes instead of one in which a run may tell a server that is away how it ended.
    env.setdefault("PREFECT_CLIENT_MAX_RETRIES", "9")
    return env


def _refuse_taken_port(port: str) -> None:
    """See that the port is free: the server of somebody else would be taken for ours, and changed.

    Raises:
        RuntimeError: If it cannot be had, or is none.
    """
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= _MAX_PORT:
        raise RuntimeError(
            f"asked for the port {port!r} of 127.0.0.1, found no number from 1 to {_MAX_PORT}; "
            "choose one by PREFECT_SERVER_API_PORT"
        )
    with socket.socket() as probe:
        # As Prefect looks; without it, a port counts as taken for a minute after its last use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(port)))
        except OSError as error:
            raise RuntimeError(
                f"asked for the port {port} of 127.0.0.1, found: {error}; stop what listens there, "
                "or choose another one by PREFECT_SERVER_API_PORT"
            ) from error


def _start(arguments: list[str], env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    # A session of its own: Ctrl-C reaches us alone, and we stop the worker before the server.
    command = [sys.executable, *arguments]
    return subprocess.Popen(
        command,
        env=dict(env),
        cwd=HOME,
        start_new_session=True,
        preexec_fn=_prepare_child,  # noqa: PLW1509 - this process has one thread
    )


def _prepare_child() -> None:
    """Let the child be stopped: by SIGINT, and by the kernel if we are killed (prctl(2))."""
    # Ignored in the background of a script; a worker turns SIGTERM into SIGINT and would stay.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def _wait_until_healthy(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {server.returncode}")
        try:
            if httpx.get(f"{url}/api/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"the server did not answer at {url} within {_START_TIMEOUT_S:.0f} s")


def _stop(part: "subprocess.Popen[bytes]") -> None:
    if part.poll() is not None:
        return
    part.terminate()
    try:
        part.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(part.pid, signal.SIGKILL)
        part.wait()


def _say(text: str) -> None:
    with suppress(OSError):  # a terminal that was closed, which must not keep jobs from saving
        sys.stderr.write(f"trainjob: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
