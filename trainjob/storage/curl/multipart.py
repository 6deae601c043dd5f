"""Objects that are sent in parts: the requests for one, and those that nobody completed.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html

A store that keeps checksums can be asked to keep that of the whole. It is never told what it is: so
it finds it itself, over what arrived, and what it tells then is a proof. S3 needs no more than that
https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
while some stores refuse parts, or the whole, of which they are not told
https://github.com/minio/minio/blob/master/cmd/erasure-multipart.go
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from html import escape
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import unquote
from xml.etree import ElementTree

from trainjob.errors import CorruptData, StoreError, StoreUnavailable
from trainjob.storage.curl.request import Answer, FilePart, Request
from trainjob.storage.curl.told import ASK, CRC64, crc64_of, hex_of
from trainjob.storage.curl.transport import Transport
from trainjob.storage.deadline import Deadline, ending_at
from trainjob.storage.failures import failure
from trainjob.storage.listing import md5_in

MAX_PARTS = 10_000  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
_ABORT_S = 5.0
_GONE = frozenset({HTTPStatus.NOT_FOUND})
_UNKNOWN = frozenset({HTTPStatus.NOT_IMPLEMENTED})
_REFUSALS = frozenset({"InvalidArgument", "InvalidPart", "InvalidRequest", "NotImplemented"})
"""What stores answer that keep no such checksum, or want to be told it."""

_OF_WHOLE = {"x-amz-checksum-algorithm": CRC64.upper(), "x-amz-checksum-type": "FULL_OBJECT"}


class ToldAtEnd(NamedTuple):
    """What a store tells of the object that it has made of parts.

    Attributes:
        etag: Its ETag, with quotes; empty if it tells none.
        crc64: The checksum that it has found of the whole, in hex; empty if it tells none.
    """

    etag: str
    crc64: str


class Multipart:
    """The object `key` on its way; it is there when it was completed, and not before.

    Attributes:
        key: Its exact key.
        tags: The ETags of the parts that the store has, by their number.
        told: What it tells of their bytes, in hex: the CRC64 of each if `has_checksum`, or its MD5.
        has_checksum: Whether it finds the CRC64 of the whole, and of each part.
    """

    def __init__(self, key: str, begun: Answer) -> None:
        self.key = key
        self.tags: dict[int, str] = {}
        self.told: dict[int, str] = {}
        self.has_checksum = all(begun.header(name) == _OF_WHOLE[name] for name in _OF_WHOLE)
        self._id = _id_in(begun)
        self._refusals = _REFUSALS if self.has_checksum else frozenset()

    @staticmethod
    def begin(key: str, *, with_checksum: bool = False) -> Request:
        """Return the request whose answer begins the object, if `begin_fault` finds none in it.

        With a checksum of the whole a store may refuse it, and then its parts or to make the object
        of them: such an answer is none of 2xx, and the object is to be begun without.
        """
        request = Request("POST", key, query={"uploads": ""})
        if with_checksum:
            request.headers, request.refusals = _OF_WHOLE, _REFUSALS
            request.answers = _UNKNOWN
        return request

    def part(self, number: int, body: bytes | FilePart, **how: Any) -> Request:
        """Return the request for one part; the first has the number 1."""
        query = {"partNumber": str(number), "uploadId": self._id}
        return Request("PUT", self.key, query=query, body=body, refusals=self._refusals, **how)

    def note(self, number: int, sent: Answer) -> None:
        """Note that the store has a part, and what it tells of it."""
        self.tags[number] = sent.etag
        self.told[number] = crc64_of(sent) if self.has_checksum else md5_in(sent.etag)

    def forget(self, number: int) -> None:
        """Let a part count as never sent."""
        del self.tags[number], self.told[number]

    def complete(self) -> Request:
        """Return the request that makes the object of its parts, see `complete_fault`.

        It is answered by 404 if an answer was lost before, see `look`.
        """
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>"
            for number, tag in sorted(self.tags.items())
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        query = {"uploadId": self._id}
        refusals = self._refusals
        return Request("POST", self.key, query=query, body=body, answers=_GONE, refusals=refusals)

    def look(self) -> Request:
        """Return the request whether the object is there, which has no parts any longer."""
        return Request("HEAD", self.key, headers=ASK if self.has_checksum else {}, answers=_GONE)

    def abort(self) -> Request:
        """Return the request that throws the parts away."""
        return Request("DELETE", self.key, query={"uploadId": self._id}, answers=_GONE)


def begin_fault(url: str, answer: Answer) -> StoreError | None:
    """Return what is wrong with the answer to `Multipart.begin`; None if nothing is."""
    return None if _id_in(answer) else _spoiled(url)


def complete_fault(url: str, answer: Answer) -> StoreError | None:
    """Return what is wrong with the answer to `Multipart.complete`; None if nothing is.

    Whoever takes the log-in page of a network for it tells of an object that is not there.
    """
    if answer.status in _GONE:
        return None
    root = _root_of(answer)
    is_it = root is not None and root.tag.rpartition("}")[2] == "CompleteMultipartUploadResult"
    return None if is_it else _spoiled(url)


def told_at_end(made: Answer) -> ToldAtEnd:
    """Return what an answer to `Multipart.complete`, or to `Multipart.look`, tells of the object.

    That is nothing if it says that there is none.
    """
    if made.request.method == "HEAD":
        etag, crc64 = made.etag, crc64_of(made)
    elif (root := _root_of(made)) is not None:
        etag = _text(root, "ETag")
        crc64 = hex_of(CRC64, _text(root, f"Checksum{CRC64.upper()}"))
    else:
        etag = crc64 = ""
    bare = etag.strip('"').lower()
    return ToldAtEnd(f'"{bare}"' if bare else "", crc64)


def check_completed(url: str, looked: Answer, etag: str) -> None:
    """See that an object whose parts are gone is there because it was completed.

    Args:
        url: What messages call it.
        looked: The answer to `Multipart.look`.
        etag: The ETag that follows from its parts.

    Raises:
        CorruptData: If it is not.
    """
    if told_at_end(looked).etag != etag:
        found = "the store has lost the parts of the object before it was complete"
        raise failure(CorruptData, url, found, "try again")


def etag_of_parts(digests: Sequence[bytes]) -> str:
    """Return the ETag of an object of parts with these MD5s."""
    md5 = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
    return f'"{md5}-{len(digests)}"'


def abort_all(transport: Transport, uploads: Iterable[Multipart]) -> None:
    """Throw away what was sent of objects that are not completed, as far as the store answers.

    Parts that nobody completes are stored, and paid for, until they are aborted. The process may
    be told to end, so there is a time of its own for this.
    """
    with ending_at(Deadline(_ABORT_S)), suppress(StoreError):
        for upload in uploads:
            transport.ask(upload.abort())


def discard_unfinished(transport: Transport, prefix: str, paths: Collection[str]) -> int:
    """Abort the uploads in parts of `paths` below `prefix` that are not completed; see `Store`."""
    unfinished = [
        (key, upload_id)
        for key, upload_id in _unfinished(transport, prefix)
        if key.removeprefix(prefix) in paths
    ]
    transport.run(
        (
            Request("DELETE", key, query={"uploadId": upload_id}, answers=_GONE)
            for key, upload_id in unfinished
        ),
        lambda _: None,
    )
    return len(unfinished)


def _unfinished(transport: Transport, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield key and id of uploads that are not completed."""
    marker: dict[str, str] = {}
    while True:
        query = {"uploads": "", "prefix": prefix, "encoding-type": "url", **marker}
        page = _page(transport, Request("GET", "", query=query), prefix)
        decode = unquote if _text(page, "EncodingType") == "url" else str
        for upload in page.iterfind("{*}Upload"):
            key = decode(_text(upload, "Key"))
            if key.startswith(prefix):  # some stores do not look at the prefix
                yield key, _text(upload, "UploadId")
        if _text(page, "IsTruncated") != "true":
            return
        marker = {
            "key-marker": decode(_text(page, "NextKeyMarker")),
            "upload-id-marker": _text(page, "NextUploadIdMarker"),
        }


def _page(transport: Transport, request: Request, prefix: str) -> ElementTree.Element:
    def fault(answer: Answer) -> StoreError | None:
        return _spoiled(transport.url(prefix)) if _root_of(answer) is None else None

    page = _root_of(transport.ask(request, fault=fault))
    assert page is not None  # noqa: S101 - that is a fault
    return page


def _id_in(begun: Answer) -> str:
    root = _root_of(begun)
    return "" if root is None else _text(root, "UploadId")


def _root_of(answer: Answer) -> ElementTree.Element | None:
    """Return what an answer of XML holds; None for anything else."""
    try:
        # expat, since 2.4.1, ends entities that explode.
        return ElementTree.fromstring(answer.body.strip())  # noqa: S314
    except ElementTree.ParseError:
        return None


def _spoiled(url: str) -> StoreError:
    found = "what the store answers about its parts cannot be read"
    return failure(StoreUnavailable, url, found, "check the endpoint")


def _text(element: ElementTree.Element, name: str) -> str:
    return element.findtext(f"{{*}}{name}") or ""
