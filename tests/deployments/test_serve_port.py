"""`make serve` on a port that somebody else listens on: it says so and asks for nothing there."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deployments.serve import _refuse_taken_port
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]


class _Healthy(BaseHTTPRequestHandler):
    """Answers as a Prefect server does that is asked for its health, and notes what was asked."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"true")

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def healthy_server(host: str) -> Iterator[tuple[int, list[str]]]:
    """Give the port of a server of somebody else, and what it was asked for."""
    asked: list[str] = []
    handler = type("Handler", (_Healthy,), {"asked": asked})
    with ThreadingHTTPServer((host, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_server_that_somebody_else_has_on_the_port_is_left_alone(
    tmp_path: Path, host: str
) -> None:
    with healthy_server(host) as (port, asked):
        done = serve(tmp_path, str(port))

    assert done.returncode == 1
    assert asked == []
    [said] = done.stderr.splitlines()
    assert said.startswith(f"trainjob: could not start: asked for the port {port} of 127.0.0.1")
    assert "Address already in use; stop what listens there, or choose another one by" in said


@pytest.mark.parametrize("port", ["65536", "0", "4200.0"])
def test_a_port_that_there_is_none_of_is_told(port: str) -> None:
    """Prefect takes all of these; 0 is any free one, which nobody would know."""
    with pytest.raises(RuntimeError) as caught:
        _refuse_taken_port(port)

    assert str(caught.value) == (
        f"asked for the port {port!r} of 127.0.0.1, found no number from 1 to 65535; choose one by "
        "PREFECT_SERVER_API_PORT"
    )


def serve(home: Path, port: str) -> "subprocess.CompletedProcess[str]":
    """Start `make serve`, which is to end by itself."""
    env = os.environ | {"PREFECT_HOME": str(home), "PREFECT_SERVER_API_PORT": port}
    command = [sys.executable, "-m", "deployments.serve"]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
