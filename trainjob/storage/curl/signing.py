"""Signs S3 requests: AWS Signature Version 4 in a header.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html

libcurl can sign, too, and was right wherever it was tried. But it refuses to together with
``PATH_AS_IS``, without which a key with ``.`` or ``..`` leads to another one, and derives its key
anew for each request: 5,000 reads of 10 KB took it 0.57 s of processor time, and 0.49 s with this
(libcurl 8.23, the least of three).
"""

import hashlib
import hmac
import time
from collections.abc import Mapping
from urllib.parse import quote

from trainjob.storage.curl.credentials import Credentials, Keys

EMPTY_SHA256 = hashlib.sha256().hexdigest()
UNSIGNED = "UNSIGNED-PAYLOAD"

_ALGORITHM = "AWS4-HMAC-SHA256"


class Signer:
    """Signs requests to one host.

    Args:
        credentials: Where the keys come from.
        region: What the signature is for.
        host: The value of the ``Host`` header.
    """

    def __init__(self, credentials: Credentials, region: str, host: str) -> None:
        self._credentials = credentials
        self._region = region
        self._host = host
        self._second = 0
        self._time = ""
        self._scope = ""
        self._keys: Keys | None = None
        self._key = b""
        self._key_of: tuple[Keys, str] | None = None

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
        """
        self._look_at_clock()
        if self._keys is None:
            return [f"{name}: {value}" for name, value in headers.items()]
        signed = {
            "host": self._host,
            "x-amz-content-sha256": sha256,
            "x-amz-date": self._time,
            **headers,
        }
        if self._keys.token:
            signed["x-amz-security-token"] = self._keys.token
        names = sorted(signed)
        lines = "".join([f"{name}:{signed[name]}\n" for name in names])
        listed = ";".join(names)
        request = f"{method}\n{path}\n{query}\n{lines}\n{listed}\n{sha256}"
        text = (
            f"{_ALGORITHM}\n{self._time}\n{self._scope}\n"
            f"{hashlib.sha256(request.encode()).hexdigest()}"
        )
        signature = hmac.digest(self._key, text.encode(), "sha256").hex()
        del signed["host"]  # libcurl sends it
        return [
            *[f"{name}: {value}" for name, value in signed.items()],
            f"Authorization: {_ALGORITHM} Credential={self._keys.access_key}/{self._scope}, "
            f"SignedHeaders={listed}, Signature={signature}",
        ]

    def _look_at_clock(self) -> None:
        """Take the time, and the keys, once a second."""
        now = int(time.time())
        if now == self._second:
            return
        self._second = now
        self._time = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        day = self._time[:8]
        self._scope = f"{day}/{self._region}/s3/aws4_request"
        self._keys = self._credentials.keys()
        if self._keys is not None and self._key_of != (self._keys, day):
            self._key = _signing_key(self._keys.secret_key, day, self._region)
            self._key_of = (self._keys, day)

    def renew(self) -> bool:
        """Look for new keys, since the store says that these are over; say if there are any."""
        self._second = 0
        return self._credentials.renew()

    @property
    def is_anonymous(self) -> bool:
        """Whether nothing is signed."""
        self._look_at_clock()
        return self._keys is None


def encode_path(key: str) -> str:
    """Return a key as it stands in a path and in what is signed."""
    return quote(key, safe="/-_.~")


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
