"""What a store tells of the bytes of a whole object: a checksum that it keeps, or an MD5 as ETag.

S3 keeps checksums of objects, those of several parts and under a key of a key service included, and
tells them to who asks. Nothing can be said here of one that is made of the checksums of parts. A
CRC of 64 bits takes a twentieth of the time of an MD5, and SHA-256 is found anyway.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html

It is written as ``crc64nvme:447f…``: a name, and the digest in hex; empty if nothing is told.
"""

import base64
import hashlib
import zlib
from collections.abc import Callable, Iterable
from functools import cache
from typing import Protocol

from trainjob.storage.curl.arrival import is_encrypted
from trainjob.storage.curl.request import Answer
from trainjob.storage.listing import md5_in
from trainjob.storage.manifest import Proof

ASK = {"x-amz-checksum-mode": "ENABLED"}
"""The header of a GET of a whole object, or of a HEAD, that asks for the checksum."""

CRC64 = "crc64nvme"
"""The checksum that AWS keeps of an object if its uploader names none."""

_START = b"x-amz-checksum-"
_NUM_BYTES = {"sha256": 32, CRC64: 8, "crc32c": 4, "crc32": 4}
"""Those that can be compared, the cheapest first, and their sizes."""

_CRC64 = "CRC64-NVME"  # as anycrc calls it

_Crc = Callable[[bytes | memoryview, int], int]


class Digest(Protocol):
    """What is found over bytes that come one after the other."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take the next bytes."""

    def hexdigest(self) -> str:
        """Return what was found."""


def told_of(answer: Answer, etag: str) -> str:
    """Return what an answer about a whole object, and its ETag, tell of its bytes."""
    if ASK.keys() <= answer.request.headers.keys() and (checksum := checksum_of(answer)):
        return checksum
    md5 = md5_in(etag)
    return f"md5:{md5}" if md5 else ""


def checksum_of(answer: Answer) -> str:
    """Return the checksum of the whole object that an answer tells, the cheapest to compare."""
    found = _checksums(answer)
    for name in _NUM_BYTES:
        if name in found and can_compare(name):
            return f"{name}:{found[name]}"
    return ""


def crc64_of(answer: Answer) -> str:
    """Return the CRC64 that an answer about a whole object, or a part, tells, in hex."""
    return _checksums(answer).get(CRC64, "")


def is_doubtful(told: str, answer: Answer) -> bool:
    """Say whether it may be that of other bytes, as ETags of objects that the store encrypts."""
    return told.startswith("md5:") and is_encrypted(answer)


def is_of(told: str, data: bytes, sha256: str) -> bool:
    """Say whether it is told of these bytes, of which the SHA-256 is known."""
    digest = digest_for(told)
    if digest is not None:
        digest.update(data)
    return told.partition(":")[2] == (sha256 if digest is None else digest.hexdigest())


def digest_for(told: str) -> Digest | None:
    """Return what finds the digest to compare with, if that is another one than SHA-256."""
    name = told.partition(":")[0]
    return None if name in ("", "sha256") else new_digest(name)


def new_digest(way: str) -> Digest:
    """Return what finds a digest of that name, other than SHA-256."""
    return hashlib.md5(usedforsecurity=False) if way == "md5" else _RunningCrc(way)


def crc64_of_parts(parts: Iterable[tuple[str, int]]) -> str:
    """Return the CRC64 of bytes whose parts have these, and these sizes."""
    from anycrc import Model  # inside, see _crcs

    model, found = Model(_CRC64), 0
    for digest, size_bytes in parts:
        found = model.combine(found, int(digest, 16), size_bytes)
    return f"{found:0{2 * _NUM_BYTES[CRC64]}x}"


def is_usable(told: str) -> bool:
    """Say whether it tells anything that bytes can be compared with here."""
    return can_compare(told.partition(":")[0])


def can_compare(name: str) -> bool:
    """Say whether a digest of this name can be found here."""
    return name in ("md5", "sha256") or (name in _NUM_BYTES and name in _crcs())


def proof_by(told: str) -> Proof:
    """Return what a comparison with it proves a file by."""
    if not told:
        return ""
    return "etag" if told.startswith("md5:") else "checksum"


class _RunningCrc:
    """A CRC over bytes that come one after the other."""

    def __init__(self, name: str) -> None:
        self._crc = _crcs()[name]
        self._digits = 2 * _NUM_BYTES[name]
        self._value = 0

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._value = self._crc(data, self._value)

    def hexdigest(self) -> str:
        """Return what was found."""
        return f"{self._value:0{self._digits}x}"


def hex_of(name: str, value: str) -> str:
    """Return in hex what a store writes in base64; empty if it is no digest of that name."""
    try:
        digest = base64.b64decode(value, validate=True)
    except ValueError:  # one of parts, which ends in "-" and their number
        return ""
    return digest.hex() if len(digest) == _NUM_BYTES.get(name) else ""


def _checksums(answer: Answer) -> dict[str, str]:
    """Return the checksums of the whole object by name, in hex."""
    found = {}
    for line in answer.head:
        if line[: len(_START)].lower() != _START:
            continue
        name, _, value = line[len(_START) :].decode("latin-1").partition(":")
        name = name.lower()
        if digest := hex_of(name, value.strip()):
            found[name] = digest
    is_of_parts = found and answer.header("x-amz-checksum-type").upper() == "COMPOSITE"
    return {} if is_of_parts else found


@cache
def _crcs() -> dict[str, _Crc]:
    """Return what can be computed; loaded when a store first tells of any."""
    try:
        from anycrc import Model
    except ImportError:
        return {"crc32": zlib.crc32}
    crc64, crc32c = Model(_CRC64), Model("CRC32-ISCSI")
    return {CRC64: crc64.calc, "crc32c": crc32c.calc, "crc32": zlib.crc32}
