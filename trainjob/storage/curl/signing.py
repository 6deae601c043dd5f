"""Signs S3 requests: AWS Signature Version 4 in a header.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html

libcurl can sign, too, and was right wherever it was tried. But it refuses to together with
``PATH_AS_IS``, without which a key with ``.`` or ``..`` leads to another one, and derives its key
anew for each request: 5,000 reads of 10 KB took it 0.57 s of processor time, and 0.49 s with this
(libcurl 8.23, the least of three).
"""

import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote

from trainjob.storage.curl.credentials import Credentials
from trainjob.storage.curl.keys import Keys

EMPTY_SHA256 = hashlib.sha256().hexdigest()
UNSIGNED = "UNSIGNED-PAYLOAD"

_ALGORITHM = "AWS4-HMAC-SHA256"
_BLOCK_BYTES = 64  # of SHA-256

_is_plain = re.compile(r"[A-Za-z0-9/\-_.~]*").fullmatch


class _Seal:
    """HMAC-SHA256 (RFC 2104) of texts that begin alike.

    The beginning is digested once. `hmac.digest`, which begins anew for every text, takes three
    times as long, which is noticeable with small objects.
    """

    def __init__(self, key: bytes, beginning: str) -> None:
        block = key.ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block) + beginning.encode())
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def of(self, rest: str) -> str:
        """Return the hex digest for the beginning and the `rest` of a text."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(rest.encode())
        outer.update(inner.digest())
        return outer.hexdigest()


class _Moment(NamedTuple):
    """What the signatures of one second have in common; `keys` are None if nothing is signed."""

    second: int
    time: str
    day: str
    keys: Keys | None
    key: bytes
    scope: str
    seal: _Seal


class Signer:
    """Signs requests to one host.

    Args:
        credentials: Where the keys come from.
        region: What the signature is for.
        host: The value of the ``Host`` header.

    Attributes:
        keys: What the latest request was signed with; None if nothing was.
    """

    def __init__(self, credentials: Credentials, region: str, host: str) -> None:
        self._credentials = credentials
        self._region = region
        self._host = host
        self.keys: Keys | None = None
        # Replaced as a whole: a signal handler may raise between any two lines.
        self._latest: _Moment | None = None

    def sign(
        self, method: str, path: str, query: str, headers: Mapping[str, str], sha256: str
    ) -> list[str]:
        """Return the lines of the header: `headers` and what proves who asks.

        Args:
            method: Such as ``GET``.
            path: As it is sent, with what S3 wants to be encoded encoded.
            query: As it is sent; see `encode_query`.
            headers: Names in lower case, and values.
            sha256: Hex digest of the body, or `UNSIGNED`.

        Raises:
            StoreDenied: If there is only a part of the keys, or what should give them fails.
        """
        moment = self._moment()
        keys = moment.keys
        if keys is None:
            return [f"{name}: {value}" for name, value in headers.items()]
        signed = {
            "host": self._host,
            "x-amz-content-sha256": sha256,
            "x-amz-date": moment.time,
            **headers,
        }
        if keys.token:
            signed["x-amz-security-token"] = keys.token
        names = sorted(signed)
        lines = "".join([f"{name}:{signed[name]}\n" for name in names])
        listed = ";".join(names)
        request = f"{method}\n{path}\n{query}\n{lines}\n{listed}\n{sha256}"
        signature = moment.seal.of(hashlib.sha256(request.encode()).hexdigest())
        del signed["host"]  # libcurl sends it
        return [
            *[f"{name}: {value}" for name, value in signed.items()],
            f"Authorization: {_ALGORITHM} Credential={keys.access_key}/{moment.scope}, "
            f"SignedHeaders={listed}, Signature={signature}",
        ]

    def _moment(self) -> _Moment:
        """Return what to sign with now; the time, and the keys, are taken once a second."""
        now = int(time.time())
        latest = self._latest
        if latest is not None and latest.second == now:
            return latest
        text = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        day = text[:8]
        keys = self._credentials.keys()
        if keys is None:
            key = b""
        elif latest is not None and (latest.keys, latest.day) == (keys, day):
            key = latest.key
        else:
            key = _signing_key(keys.secret_key, day, self._region)
        self.keys = keys
        scope = f"{day}/{self._region}/s3/aws4_request"
        seal = _Seal(key, f"{_ALGORITHM}\n{text}\n{scope}\n")
        self._latest = _Moment(now, text, day, keys, key, scope, seal)
        return self._latest

    def renew(self, old: Keys | None) -> bool:
        """Look for other keys than `old`, which the store says are over; say if there are any."""
        self._latest = None
        return self._credentials.renew(old)

    @property
    def is_anonymous(self) -> bool:
        """Whether nothing is signed."""
        return self._moment().keys is None


def encode_path(key: str) -> str:
    """Return a key as it stands in a path and in what is signed."""
    return key if _is_plain(key) else quote(key, safe="/-_.~")


def encode_query(query: Mapping[str, str]) -> str:
    """Return a query as it is sent and signed: sorted by names, with the values encoded."""
    return "&".join(
        f"{name}={value}"
        for name, value in sorted((_encoded(name), _encoded(query[name])) for name in query)
    )


def _encoded(text: str) -> str:
    return quote(text, safe="-_.~")


def _signing_key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
