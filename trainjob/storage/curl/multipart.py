"""Objects that are sent in parts: the requests for one, and those that nobody completed.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from html import escape
from http import HTTPStatus
from urllib.parse import unquote
from xml.etree import ElementTree

from trainjob.errors import CorruptData, StoreError, StoreUnavailable
from trainjob.storage.curl.request import Answer, Request
from trainjob.storage.curl.transport import Transport
from trainjob.storage.deadline import Deadline, ending_at
from trainjob.storage.failures import failure

MAX_PARTS = 10_000  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
_ABORT_S = 5.0
_GONE = frozenset({HTTPStatus.NOT_FOUND})


class Multipart:
    """The object `key` on its way; it is there when it was completed, and not before.

    Attributes:
        key: Its exact key.
        tags: The ETags of the parts that the store has, by their number.
    """

    def __init__(self, key: str, begun: Answer) -> None:
        self.key = key
        self.tags: dict[int, str] = {}
        self._id = _id_in(begun)

    @staticmethod
    def begin(key: str) -> Request:
        """Return the request whose answer begins the object, if `begin_fault` finds none in it."""
        return Request("POST", key, query={"uploads": ""})

    def query(self, number: int) -> dict[str, str]:
        """Return the query of the request for one part; the first has the number 1."""
        return {"partNumber": str(number), "uploadId": self._id}

    def complete(self) -> Request:
        """Return the request that makes the object of its parts, see `complete_fault`.

        It is answered by 404 if an answer was lost before, see `check_completed`.
        """
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>"
            for number, tag in sorted(self.tags.items())
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        query = {"uploadId": self._id}
        return Request("POST", self.key, query=query, body=body, answers=_GONE)

    def look(self) -> Request:
        """Return the request whether the object is there, for `check_completed`."""
        return Request("HEAD", self.key, answers=_GONE)

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


def check_completed(url: str, looked: Answer, etag: str) -> None:
    """See that an object whose parts are gone is there because it was completed.

    Args:
        url: What messages call it.
        looked: The answer to `Multipart.look`.
        etag: The ETag that follows from its parts.

    Raises:
        CorruptData: If it is not.
    """
    if looked.etag.lower() != etag:
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
