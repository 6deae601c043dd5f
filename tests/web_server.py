"""A plain web server over a folder on 127.0.0.1, which can be told to misbehave."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class WebServer(ThreadingHTTPServer):
    """Serves `root`, with `headers` on every answer.

    `faults` holds, by method and path (``GET /file``), what becomes of the next requests: a status
    to refuse with, ``cut`` in the middle of the body, or ``stall`` until the server ends.
    """

    request_queue_size = 128

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(root)))
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.faults: dict[str, list[Any]] = {}
        self.headers: dict[str, str] = {}
        self.stalled = threading.Event()
        self.ended = threading.Event()

    def fault_of(self, command: str, path: str) -> Any:
        faults = self.faults.get(f"{command} {path}")
        return faults.pop(0) if faults else None


class _Handler(SimpleHTTPRequestHandler):
    server: WebServer

    def do_GET(self) -> None:
        fault = self.server.fault_of("GET", self.path)
        if fault == "stall":
            self.server.stalled.set()
            self.server.ended.wait()
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 500)
        elif fault:
            self.send_error(fault)
        else:
            super().do_GET()

    def end_headers(self) -> None:
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""
