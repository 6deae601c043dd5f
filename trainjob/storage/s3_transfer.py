"""Moves the bytes of trees from and to S3, many objects at a time.

Bytes are counted and digested while they pass; no object is held in memory as a whole. An object
is read with ``If-Match`` on the ETag of the listing, so that two versions are never mixed.
"""

import asyncio
import hashlib
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from io import BufferedReader
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from trainjob.errors import (
    CorruptData,
    StoreError,
    StoreNotFound,
    StoreUnavailable,
    TreeChanged,
)
from trainjob.storage import s3_client
from trainjob.storage.failures import failure, local_failures
from trainjob.storage.listing import Entry, is_version, md5_in
from trainjob.storage.local_tree import changed, open_listed, version_of
from trainjob.storage.manifest import FileRecord, OnFile, Proof
from trainjob.storage.meter import Meter
from trainjob.storage.pace import Pace, Window
from trainjob.storage.refusals import unreachable
from trainjob.storage.s3_client import S3Client, each
from trainjob.storage.s3_errors import s3_failures

MULTIPART_BYTES = 64 << 20
PART_BYTES = 16 << 20
_PARTS_AT_A_TIME = 4
_MAX_PARTS = 10_000  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
_CHUNK_BYTES = 1 << 20
_TRIES = 4
_FIRST_PAUSE_S = 0.2
_RUN_AGAIN = "run again when nothing writes to it"

_PutPart = Callable[[int, bytes], Awaitable[None]]


class Transfer:
    """One copy of a tree from or to ``s3://bucket/prefix``; `meter` counts it."""

    def __init__(self, client: S3Client, bucket: str, prefix: str, meter: Meter) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._meter = meter
        self._part_slots = asyncio.Semaphore(_PARTS_AT_A_TIME)
        # It goes on with what comes alone, of which there is some within this time.
        self._pace = Pace(longest_step_s=s3_client.READ_TIMEOUT_S)
        self._num_receiving = 0

    async def download(
        self, files: Sequence[Entry], target: Path, done: OnFile | None = None
    ) -> list[FileRecord]:
        """Copy `files` to their paths below `target`."""

        async def save(entry: Entry) -> FileRecord:
            file = target / entry.path
            with local_failures(str(file)):
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("wb") as copy:
                    record = await self._fetch(entry, copy)
            if done is not None:
                done(record)
            return record

        return await each(files, save)

    async def digest(self, files: Sequence[Entry]) -> list[FileRecord]:
        """Read `files` and return what arrives."""

        async def read(entry: Entry) -> FileRecord:
            return await self._fetch(entry, None)

        return await each(files, read)

    async def upload(
        self, source: Path, files: Sequence[Entry], skipped: list[str] | None
    ) -> list[FileRecord]:
        """Copy `files` from the folder `source`; see `trainjob.storage.store.Store`."""

        async def send(entry: Entry) -> FileRecord | None:
            try:
                record = await self._send_unchanged(source / entry.path, entry)
            except TreeChanged:
                if skipped is None:
                    raise
                skipped.append(entry.path)
                return None
            self._meter.finish_file()
            return record

        return [record for record in await each(files, send) if record is not None]

    async def upload_chunks(self, path: str, chunks: Iterable[bytes]) -> FileRecord:
        """Write one object from pieces of any size."""
        entry, sha256, size_bytes = Entry(path, 0, ""), hashlib.sha256(), 0
        parts = _parts_of(chunks)

        async def next_part() -> bytes:
            nonlocal size_bytes
            # Making the pieces may take a while, during which the loop has other work.
            part = await asyncio.to_thread(next, parts, b"")
            sha256.update(part)
            size_bytes += len(part)
            return part

        part = await next_part()
        if len(part) < PART_BYTES:
            await self._call("put_object", entry, Body=part)
        else:
            async with self._multipart(entry) as put:
                for number in count(1):
                    await put(number, part)
                    if not (part := await next_part()):
                        break
        return FileRecord(path, size_bytes, sha256.hexdigest())

    async def _send_unchanged(self, file: Path, entry: Entry) -> FileRecord:
        try:
            with local_failures(str(file)):
                sha256 = await self._send(file, entry)
        except StoreError as error:
            if _is_changed(file, entry):
                raise changed(file) from error
            raise
        if _is_changed(file, entry):
            raise changed(file)
        return FileRecord(entry.path, entry.size_bytes, sha256)

    async def _fetch(self, entry: Entry, copy: BinaryIO | None) -> FileRecord:
        """Read one object, again if it breaks off on the way, which botocore does not do."""
        for attempt in range(1, _TRIES + 1):
            answer = await self._get(entry)
            try:
                record = await self._receive(entry, answer, copy)
            except (StoreUnavailable, CorruptData):
                if attempt == _TRIES:
                    raise
                if copy is not None:
                    copy.seek(0)
                    copy.truncate()
                await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt)
            else:
                break
        self._meter.finish_file()
        return record

    async def _get(self, entry: Entry) -> dict[str, Any]:
        url = self._url(entry)
        condition = {"IfMatch": entry.version} if entry.version else {}
        try:
            answer = await self._call("get_object", entry, **condition)
        except StoreNotFound as error:
            found = "the object was deleted while the tree was copied"
            raise failure(TreeChanged, url, found, _RUN_AGAIN) from error
        if not is_version(answer.get("ETag", ""), entry):
            answer["Body"].close()  # what comes is not wanted
            # A store that does not know If-Match answers with the new version.
            raise failure(TreeChanged, url, "the object changed while it was copied", _RUN_AGAIN)
        return answer

    async def _receive(
        self, entry: Entry, answer: dict[str, Any], copy: BinaryIO | None
    ) -> FileRecord:
        url, received = self._url(entry), 0
        proof: Proof = ""
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        window = Window(self._pace, s3_client.READ_TIMEOUT_S)
        self._num_receiving += 1
        try:
            async with answer["Body"] as body:
                while chunk := await self._next_chunk(body, url):
                    received += len(chunk)
                    self._meter.add_bytes(len(chunk))
                    self._check_pace(window, received, url)
                    sha256.update(chunk)
                    if copy is not None:
                        copy.write(chunk)
                        md5.update(chunk)
            _check_size(url, entry, received)
            if copy is not None:
                proof = _check_md5(url, entry, answer, md5.hexdigest())
        except BaseException:
            self._meter.add_bytes(-received)
            raise
        finally:
            self._num_receiving -= 1
        return FileRecord(entry.path, received, sha256.hexdigest(), verified=proof)

    def _check_pace(self, window: Window, received: int, url: str) -> None:
        self._pace.go_on(self._num_receiving)
        if window.is_too_slow(received):
            raise unreachable(url, "", "it came too slowly")

    async def _next_chunk(self, body: Any, url: str) -> bytes:
        with s3_failures(url):
            return bytes(await body.read(_CHUNK_BYTES))

    async def _send(self, file: Path, entry: Entry) -> str:
        """Send one file and return the sha256 that it had before."""
        with open_listed(file, entry) as opened:
            sha256 = await asyncio.to_thread(_sha256, opened)
            opened.seek(0)
            if entry.size_bytes > MULTIPART_BYTES:
                await self._send_parts(opened, entry)
            else:
                await self._call("put_object", entry, Body=opened)
                self._meter.add_bytes(entry.size_bytes)
        return sha256

    async def _send_parts(self, opened: BinaryIO, entry: Entry) -> None:
        part_bytes = max(PART_BYTES, math.ceil(entry.size_bytes / _MAX_PARTS))
        async with self._multipart(entry) as put:

            async def send(number: int) -> None:
                async with self._part_slots:
                    # pread: the parts share one open file.
                    data = os.pread(opened.fileno(), part_bytes, (number - 1) * part_bytes)
                    await put(number, data)
                self._meter.add_bytes(len(data))

            await each(range(1, math.ceil(entry.size_bytes / part_bytes) + 1), send)

    @asynccontextmanager
    async def _multipart(self, entry: Entry) -> AsyncIterator[_PutPart]:
        """Give what sends a part; the object is there when the block ends well."""
        upload = await self._call("create_multipart_upload", entry)
        upload_id = upload["UploadId"]
        tags: dict[int, str] = {}

        async def put(number: int, data: bytes) -> None:
            part = await self._call(
                "upload_part", entry, UploadId=upload_id, PartNumber=number, Body=data
            )
            tags[number] = part["ETag"]

        try:
            yield put
            parts = [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]
            await self._call(
                "complete_multipart_upload",
                entry,
                UploadId=upload_id,
                MultipartUpload={"Parts": parts},
            )
        except BaseException:
            # Parts that nobody completes are stored, and paid for, until they are aborted.
            with suppress(StoreError):
                await self._call("abort_multipart_upload", entry, UploadId=upload_id)
            raise

    async def _call(self, operation: str, entry: Entry, **parameters: Any) -> dict[str, Any]:
        with s3_failures(self._url(entry)):
            return await self._client.call(
                operation, Bucket=self._bucket, Key=self._prefix + entry.path, **parameters
            )

    def _url(self, entry: Entry) -> str:
        return f"s3://{self._bucket}/{self._prefix}{entry.path}"


def _sha256(opened: BufferedReader) -> str:
    return hashlib.file_digest(opened, "sha256").hexdigest()


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


def _check_size(url: str, entry: Entry, received: int) -> None:
    if received != entry.size_bytes:
        found = f"{received} of {entry.size_bytes} bytes arrived"
        raise failure(StoreUnavailable, url, found, "try again")


def _check_md5(url: str, entry: Entry, answer: dict[str, Any], md5: str) -> Proof:
    """Compare with the ETag where it is an MD5, and say whether that was done.

    It is not for objects of several parts and for those that are encrypted with a key of a key
    service or of the client: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    if answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer:
        return ""
    told = md5_in(entry.version)
    if told and told != md5:
        found = "the bytes that arrived do not have the MD5 that the store tells"
        raise failure(CorruptData, url, found, "try again, or put the object there again")
    return "etag" if told else ""


def _is_changed(file: Path, entry: Entry) -> bool:
    try:
        return version_of(file) != entry.version
    except FileNotFoundError:
        return True
