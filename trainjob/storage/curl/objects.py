"""Writes single objects to S3: from bytes, and from pieces that are just being made."""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from http import HTTPStatus

from trainjob.storage.curl.multipart import (
    Multipart,
    abort_all,
    begin_fault,
    check_completed,
    complete_fault,
    etag_of_parts,
)
from trainjob.storage.curl.request import Answer, Request
from trainjob.storage.curl.transport import Transport
from trainjob.storage.manifest import FileRecord

PART_BYTES = 16 << 20
"""The size of the parts of an object that is made of pieces."""


def whole_object(key: str, path: str, data: bytes) -> tuple[FileRecord, Request]:
    """Return what a small object is, and the request that makes it so."""
    sha256 = hashlib.sha256(data).hexdigest()
    md5 = hashlib.md5(data, usedforsecurity=False)
    headers = {"content-md5": base64.b64encode(md5.digest()).decode()}
    request = Request("PUT", key, headers=headers, body=data, sha256=sha256, weight_bytes=len(data))
    return FileRecord(path, len(data), sha256, f'"{md5.hexdigest()}"'), request


def upload_chunks(
    transport: Transport, prefix: str, path: str, chunks: Iterable[bytes]
) -> FileRecord:
    """Write one object from pieces of any size; see `Store.upload_chunks`."""
    key, sha256, size_bytes = prefix + path, hashlib.sha256(), 0
    digests: list[bytes] = []
    parts = _parts_of(chunks)
    first = next(parts, b"")
    if len(first) < PART_BYTES:
        record, request = whole_object(key, path, first)
        transport.ask(request)
        return record

    def requests() -> Iterator[Request]:
        nonlocal size_bytes
        part = first
        while part:
            size_bytes += len(part)
            sha256.update(part)
            digests.append(hashlib.md5(part, usedforsecurity=False).digest())
            headers = {"content-md5": base64.b64encode(digests[-1]).decode()}
            yield upload.part(len(digests), part, headers=headers, weight_bytes=len(part))
            part = next(parts, b"")

    def note(answer: Answer) -> None:
        upload.note(int(answer.request.query["partNumber"]), answer)

    url = transport.url(key)
    begun = transport.ask(Multipart.begin(key), fault=partial(begin_fault, url))
    upload = Multipart(key, begun)
    try:
        transport.run(requests(), note)
        etag = etag_of_parts(digests)
        completed = transport.ask(upload.complete(), fault=partial(complete_fault, url))
        if completed.status == HTTPStatus.NOT_FOUND:
            check_completed(url, transport.ask(upload.look()), etag)
    except BaseException:
        abort_all(transport, [upload])
        raise
    return FileRecord(path, size_bytes, sha256.hexdigest(), etag)


def create(transport: Transport, key: str, data: bytes) -> bool:
    """Put a small object if there is none of that key; see `Store.create`.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
    """
    refusals = {HTTPStatus.PRECONDITION_FAILED, HTTPStatus.CONFLICT}
    unknown = HTTPStatus.NOT_IMPLEMENTED
    answers = frozenset({*refusals, unknown})
    request = Request("PUT", key, headers={"if-none-match": "*"}, body=data, answers=answers)
    status = transport.ask(request).status
    if status == unknown:
        transport.ask(Request("PUT", key, body=data))
    return status not in refusals


def make_folders(transport: Transport, prefix: str, paths: Sequence[str]) -> None:
    """Put the empty objects that stand for folders in consoles of stores."""
    transport.run((Request("PUT", f"{prefix}{path}/", body=b"") for path in paths), lambda _: None)


def _parts_of(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of `PART_BYTES`, the last of which may be shorter."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) >= PART_BYTES:
            yield bytes(held[:PART_BYTES])
            del held[:PART_BYTES]
    if held:
        yield bytes(held)
