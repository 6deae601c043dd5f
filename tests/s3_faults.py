"""A proxy on 127.0.0.1 in front of a real store that does to answers what networks do."""

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

# fmt: off
Fault = Literal[
    "cut", "short", "reset", "stall", "slow", "flip", "damage", "page", "unconditional",
    "gone", "hang",
    "301", "400", "403", "429", "500", "503", "expired", "skew", "region",
] | None
# fmt: on
Rule = Callable[[str, str], Fault]

_OWN_HEADERS = {"content-length", "transfer-encoding", "connection"}
_PAGE = b"<!DOCTYPE html><html><body>Please log in to this network.<br></body></html>"


def _refusal(status: int, code: str, more: str = "") -> tuple[int, bytes]:
    message = f"<Message>{code} as a store says it</Message>"
    return status, f"<Error><Code>{code}</Code>{message}{more}</Error>".encode()


_ERRORS = {
    "301": _refusal(301, "PermanentRedirect", "<Endpoint>s3.eu-west-1.example</Endpoint>"),
    "400": _refusal(400, "InvalidRequest"),
    "403": _refusal(403, "AccessDenied"),
    "429": _refusal(429, "SlowDown"),
    "500": _refusal(500, "InternalError"),
    "503": _refusal(503, "SlowDown"),
    "expired": _refusal(400, "ExpiredToken"),
    "skew": _refusal(403, "RequestTimeTooSkewed"),
    "region": _refusal(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"),
    "page": (200, _PAGE),
}


class FaultProxy(ThreadingHTTPServer):
    """Forwards every request and spoils the answer as `rule` says.

    The rule gets method and path of a request and returns what goes wrong. In the middle of the
    body: ``cut`` the connection, ``reset`` it, ``stall`` until the proxy ends, or go on
    so ``slow`` that it would take an hour. ``short``: half of the body as if it were all; ``flip``
    one bit, or ``damage`` one of the body of the request;
    ``unconditional``: ask without ``If-Match``, as a store that does not know it; ``page``: the
    log-in page of a network. A number or ``expired``, ``skew``, ``region``: the store refuses.
    ``gone``: close the connection without having asked the store; ``hang``: do not even answer
    until the proxy ends.
    """

    # The default of 5 makes a client with many connections wait for a second now and then.
    request_queue_size = 256

    def __init__(self, upstream_port: int, rule: Rule) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint_url = f"http://127.0.0.1:{self.server_port}"
        self.upstream_port = upstream_port
        self.rule = rule
        self.presign: Callable[[str], str] | None = None
        """Gives path and query that are allowed to anybody; needed for ``unconditional``."""
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.stalled = threading.Event()
        self.ended = threading.Event()
        self.reset_sockets: set[Any] = set()

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, without the end that a reset one does not have."""
        if request in self.reset_sockets:
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that breaks off is what many tests are about."""


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
    lock = threading.Lock()

    def rule(asked_method: str, path: str) -> Fault:
        with lock:
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
        if "Range" in self.headers:
            self.server.ranges.append(self.headers["Range"])
        fault = self.server.rule(self.command, self.path)
        if fault in _ERRORS:
            status, text = _ERRORS[fault]
            self.send_head(status, {}, len(text))
            self.wfile.write(text)
            return
        if fault in ("gone", "hang"):
            self.close_connection = True
            if fault == "hang":
                self.server.stalled.set()
                self.server.ended.wait()
            return
        path, headers = self.path, dict(self.headers.items())
        if fault == "unconditional" and self.server.presign is not None:
            # If-Match may be among what was signed, so all but the range is asked anew.
            path = self.server.presign(self.path)
            headers = {name: value for name, value in headers.items() if name.lower() == "range"}
            headers["Host"] = f"127.0.0.1:{self.server.upstream_port}"
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.upstream_port)) as store:
            store.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() != "expect":
                    store.putheader(name, value)
            spoiled = body[:-1] + bytes([body[-1] ^ 1]) if fault == "damage" else body
            store.endheaders(spoiled)
            answer = store.getresponse()
            data = answer.read()
        answered = dict(answer.getheaders())
        if fault == "short":
            data = data[: len(data) // 2]
        length = int(answered.get("Content-Length", 0)) if self.command == "HEAD" else len(data)
        self.send_head(answer.status, answered, length)
        self.send_body(data, fault)

    # The names that BaseHTTPRequestHandler looks up.
    do_GET = do_PUT = do_HEAD = do_POST = do_PATCH = do_DELETE = forward  # noqa: N815

    def send_head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in _OWN_HEADERS:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def send_body(self, data: bytes, fault: Fault) -> None:
        if fault == "flip":
            self.wfile.write(data[:-1] + bytes([data[-1] ^ 1]))
        elif fault in ("cut", "reset", "stall", "slow"):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            if fault == "stall":
                self.server.stalled.set()
                self.server.ended.wait()
            for byte in data[len(data) // 2 :] if fault == "slow" else b"":
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.server.ended.wait(0.01):
                    break
            if fault == "reset":
                # A close that waits for nothing resets the connection, see socket(7).
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.server.reset_sockets.add(self.connection)
        else:
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Say nothing."""
