"""Which certificates of stores are trusted, and what is said of the others."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.core.storage.scripted_store import Reply, ScriptedStore
from tests.core.storage.tls import make_certificate, serve_over_tls
from trainjob.errors import StoreError
from trainjob.storage.curl.request import Request
from trainjob.storage.curl.transport import Transport
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import open_store


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return make_certificate(tmp_path)


@pytest.fixture
def over_tls(scripted: ScriptedStore, certificate: Path) -> StoreSettings:
    return serve_over_tls(scripted, certificate)


def test_a_certificate_of_ones_own_is_trusted_when_it_is_named(over_tls, certificate, replies):
    replies[:] = [Reply(200, b"data")]
    transport = Transport("b", replace(over_tls, ca_bundle=certificate))

    body = transport.ask(Request("GET", "k")).body
    transport.close()

    assert body == b"data"


def test_a_certificate_that_is_not_trusted_is_told_at_once(over_tls, scripted):
    transport = Transport("b", over_tls)

    with pytest.raises(StoreError, match="s3://b/k: the certificate of the store is not trusted"):
        transport.ask(Request("GET", "k"))
    transport.close()

    assert scripted.asked == []


@pytest.mark.parametrize(
    ("days", "address", "found", "do"),
    [
        (-1, "127.0.0.1", "expired", "set the clock of this machine"),
        (4, "127.0.0.1", "not yet valid", "set the clock of this machine"),
        (1, "127.0.0.2", "127.0.0.1", "correct the endpoint"),
    ],
)
@pytest.mark.usefixtures("engine")
def test_why_a_certificate_is_not_trusted_is_told(scripted, tmp_path, days, address, found, do):
    """Nobody mends the end of a certificate, or the clock, by another ca_bundle."""
    certificate = make_certificate(tmp_path, days, address)
    settings = replace(serve_over_tls(scripted, certificate), ca_bundle=certificate)

    error = _refused(settings)

    assert "the certificate of the store is not trusted" in error
    assert found in error.rpartition("; ")[0]
    assert do in error.rpartition("; ")[2]


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
@pytest.mark.usefixtures("engine")
def test_a_file_that_has_no_certificates_is_told(over_tls, tmp_path, content):
    """It is the file that is wrong then, and nothing of the store."""
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_bytes(content)

    error = _refused(replace(over_tls, ca_bundle=bundle))

    assert "the certificates to trust cannot be read" in error
    assert "ca_bundle" in error.rpartition("; ")[2]


@pytest.mark.usefixtures("engine")
def test_a_store_without_tls_is_not_told_as_a_wrong_certificate(scripted, monkeypatch):
    monkeypatch.setattr("trainjob.storage.curl.retry.FIRST_PAUSE_S", 0)
    endpoint = scripted.endpoint_url.replace("http:", "https:")

    error = _refused(replace(scripted.settings, endpoint_url=endpoint))

    assert "no whole answer from the store" in error
    assert "check the endpoint" in error


def _refused(settings: StoreSettings) -> str:
    with open_store("s3://b/data", settings) as store, pytest.raises(StoreError) as caught:
        store.list_files()
    return str(caught.value)
