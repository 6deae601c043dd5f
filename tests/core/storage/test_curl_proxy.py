"""Ways through a proxy of the environment, as most networks of companies have one."""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.core.storage.engines import shorten_pauses
from tests.core.storage.scripted_store import Reply
from tests.core.storage.tls import make_certificate, serve_over_tls
from trainjob.errors import StoreError, StoreUnavailable
from trainjob.storage.curl.request import Request
from trainjob.storage.curl.transport import Transport


class TunnelProxy(ThreadingHTTPServer):
    """Leads to any place of this machine (CONNECT, RFC 9110 9.3.6), unless it refuses."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://user:pa55@127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        self.passwords: set[str | None] = set()
        self.status = 200

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of ends that leave; anything else is a mistake of the test."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TunnelProxy

    def do_CONNECT(self) -> None:
        self.server.asked.append(self.path)
        self.server.passwords.add(self.headers["Proxy-Authorization"])
        self.close_connection = True
        self.send_response_only(self.server.status)
        # What a proxy says of itself is not what the store says of the object.
        self.send_header("ETag", '"of the proxy"')
        self.end_headers()
        if self.server.status != 200:
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as store:
            up = threading.Thread(target=_pump, args=(self.connection, store))
            up.start()
            _pump(store, self.connection)
            up.join()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Send on what comes until there is no more, or the other end is gone."""
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


@contextmanager
def serving(proxy: TunnelProxy) -> Iterator[TunnelProxy]:
    with proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


@pytest.fixture
def tunnel(monkeypatch: pytest.MonkeyPatch) -> Iterator[TunnelProxy]:
    """A proxy for https and http, of which no place of this machine is an exception."""
    shorten_pauses(monkeypatch)
    for name in ("no_proxy", "NO_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(TunnelProxy()) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        yield proxy


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return make_certificate(tmp_path)


def test_a_store_without_tls_is_asked_through_the_proxy(scripted, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", scripted.endpoint_url)
    settings = replace(scripted.settings, endpoint_url="http://store.invalid")
    transport = Transport("b", settings)

    transport.ask(Request("GET", "k"))
    transport.close()

    assert [asked.path for asked in scripted.asked] == ["http://store.invalid/b/k"]


def test_a_store_with_tls_is_asked_through_a_tunnel(tunnel, scripted, certificate, replies):
    replies[:] = [Reply(200, b"data"), Reply(200, b"data", {"ETag": '"of the store"'})]
    settings = replace(serve_over_tls(scripted, certificate), ca_bundle=certificate)
    transport = Transport("b", settings)

    first, second = (transport.ask(Request("GET", "k")) for _ in range(2))
    transport.close()

    assert (first.body, second.body) == (b"data", b"data")
    assert (first.etag, second.etag) == ("", '"of the store"')
    assert tunnel.asked == [f"127.0.0.1:{scripted.server_port}"]
    assert tunnel.passwords == {"Basic dXNlcjpwYTU1"}
    assert [asked.path for asked in scripted.asked] == ["/b/k", "/b/k"]
    assert not any("Proxy-Authorization" in asked.headers for asked in scripted.asked)


def test_the_certificate_that_counts_is_that_of_the_store(tunnel, scripted, certificate):
    transport = Transport("b", serve_over_tls(scripted, certificate))

    with pytest.raises(StoreError, match="the certificate of the store is not trusted"):
        transport.ask(Request("GET", "k"))
    transport.close()

    assert len(tunnel.asked) == 1
    assert scripted.asked == []


def test_a_proxy_that_refuses_is_told_without_its_password(tunnel, scripted, certificate):
    tunnel.status = 407
    transport = Transport("b", serve_over_tls(scripted, certificate))

    with pytest.raises(StoreUnavailable, match=r"no whole answer from the store .*407") as caught:
        transport.ask(Request("GET", "k"))
    transport.close()

    assert "pa55" not in str(caught.value)


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize("is_over_tls", [True, False])
def test_a_store_that_the_proxy_is_not_for_is_asked_directly(
    tunnel, scripted, certificate, monkeypatch, name, is_over_tls
):
    monkeypatch.setenv(name, "example.org,127.0.0.1")
    settings = scripted.settings
    if is_over_tls:
        settings = replace(serve_over_tls(scripted, certificate), ca_bundle=certificate)
    transport = Transport("b", settings)

    transport.ask(Request("GET", "k"))
    transport.close()

    assert [asked.path for asked in scripted.asked] == ["/b/k"]
    assert tunnel.asked == []
