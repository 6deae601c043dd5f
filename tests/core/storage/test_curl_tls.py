"""Which certificates of stores are trusted over libcurl."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.core.storage.scripted_store import Reply, ScriptedStore
from tests.core.storage.tls import make_certificate, serve_over_tls
from trainjob.errors import StoreError
from trainjob.storage.curl.request import Request
from trainjob.storage.curl.transport import Transport
from trainjob.storage.settings import StoreSettings


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
