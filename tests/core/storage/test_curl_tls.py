"""Which certificates of stores are trusted over libcurl."""

import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.core.storage.scripted_store import Reply, ScriptedStore
from trainjob.errors import StoreError
from trainjob.storage.curl.request import Request
from trainjob.storage.curl.transport import Transport
from trainjob.storage.settings import StoreSettings


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "store")])
    address = x509.IPAddress(IPv4Address("127.0.0.1"))
    today = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "store.pem").write_bytes(made.public_bytes(Encoding.PEM) + secret)
    return tmp_path / "store.pem"


@pytest.fixture
def over_tls(scripted: ScriptedStore, certificate: Path) -> StoreSettings:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    scripted.socket = context.wrap_socket(scripted.socket, server_side=True)
    endpoint = scripted.endpoint_url.replace("http:", "https:")
    return replace(scripted.settings, endpoint_url=endpoint)


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
