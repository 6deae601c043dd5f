"""A proxy on 127.0.0.1 in front of a real store that does to answers what networks do."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["cut", "flip", "503", "403", "stall", "gone", "hang"] | None
Rule = Callable[[str, str], Fault]

_OWN_HEADERS = {"content-length", "transfer-encoding", "connection"}
_ERRORS = {
    "503": b"<Error><Code>SlowDown</Code></Error>",
    "403": b"<Error><Code>AccessDenied</Code></Error>",
}


class FaultProxy(ThreadingHTTPServer):
    """Forwards every request and spoils the answer as `rule` says.

    The rule gets method and path of a request and returns what goes wrong: ``cut`` the connection
    in the middle of the body, ``flip`` one bit, answer ``503`` or ``403``, or ``stall`` in the
    middle of the body until the proxy ends; ``gone``: close the connection without having asked
    the store; ``hang``: do not even answer until the proxy ends.
    """

    def __init__(self, upstream_port: int, rule: Rule) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint_url = f"http://127.0.0.1:{self.server_port}"
        self.upstream_port = upstream_port
        self.rule = rule
        self.requests: list[tuple[str, str]] = []
        self.stalled = threading.Event()
        self.ended = threading.Event()


@contextmanager
def fault_proxy(upstream_port: int, rule: Rule) -> Iterator[FaultProxy]:
    with FaultProxy(upstream_port, rule) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.ended.set()
            proxy.shutdown()
            thread.join()


def times(count: int, fault: Fault, method: str, part: str) -> Rule:
    """Return a rule: the first `count` requests of `method` with `part` in the path go wrong."""
    left = [count]

    def rule(asked_method: str, path: str) -> Fault:
        if left[0] and asked_method == method and part in path:
            left[0] -= 1
            return fault
        return None

    return rule


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path))
        fault = self.server.rule(self.command, self.path)
        if fault in _ERRORS:
            self.send_head(int(fault), {}, len(_ERRORS[fault]))
            self.wfile.write(_ERRORS[fault])
            return
        if fault in ("gone", "hang"):
            self.close_connection = True
            if fault == "hang":
                self.server.stalled.set()
                self.server.ended.wait()
            return
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.upstream_port)) as store:
            store.putrequest(self.command, self.path, skip_host=True)
            for name, value in self.headers.items():
                if name.lower() != "expect":
                    store.putheader(name, value)
            store.endheaders(body)
            answer = store.getresponse()
            data = answer.read()
        headers = dict(answer.getheaders())
        length = int(headers.get("Content-Length", 0)) if self.command == "HEAD" else len(data)
        self.send_head(answer.status, headers, length)
        self.send_body(data, fault)

    # The names that BaseHTTPRequestHandler looks up.
    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward  # noqa: N815

    def send_head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in _OWN_HEADERS:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def send_body(self, data: bytes, fault: Fault) -> None:
        if fault is None:
            self.wfile.write(data)
        elif fault == "flip":
            self.wfile.write(data[:-1] + bytes([data[-1] ^ 1]))
        else:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            if fault == "stall":
                self.server.stalled.set()
                self.server.ended.wait()

    def log_message(self, *args: object) -> None:
        """Say nothing."""
