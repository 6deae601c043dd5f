"""A store that is asked over TLS, with a certificate that nobody else has signed."""

import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.core.storage.scripted_store import ScriptedStore
from trainjob.storage.settings import StoreSettings


def make_certificate(folder: Path, days: int = 1, address: str = "127.0.0.1") -> Path:
    """Return a file with a certificate for an address and its key, which begins two days before
    it ends in so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "store")])
    named = x509.IPAddress(IPv4Address(address))
    end = datetime.now(UTC) + timedelta(days=days)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(end - timedelta(days=2))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([named]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "store.pem").write_bytes(made.public_bytes(Encoding.PEM) + secret)
    return folder / "store.pem"


def serve_over_tls(store: ScriptedStore, certificate: Path) -> StoreSettings:
    """Have a store answer over TLS from now on; return the settings for it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    store.socket = context.wrap_socket(store.socket, server_side=True)
    endpoint = store.endpoint_url.replace("http:", "https:")
    return replace(store.settings, endpoint_url=endpoint)
