"""A prefix of an S3 bucket as a store."""

from collections.abc import Collection, Coroutine, Iterable, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import unquote

from botocore.exceptions import ClientError

from trainjob.errors import StoreError, StoreNotFound
from trainjob.storage.arrived_parts import ArrivedParts
from trainjob.storage.key_failures import refuse_odd
from trainjob.storage.keys import refuse_keys
from trainjob.storage.listing import Entry, Listing
from trainjob.storage.manifest import FileRecord, OnFile
from trainjob.storage.meter import Meter
from trainjob.storage.s3_client import S3Client, each, objects
from trainjob.storage.s3_errors import s3_failures
from trainjob.storage.s3_transfer import Transfer
from trainjob.storage.settings import StoreSettings
from trainjob.storage.write_probe import prove_writing

T = TypeVar("T")


class S3Store:
    """The folder at ``s3://bucket/prefix/``; see `trainjob.storage.store.Store`."""

    creates_in_one_step = True
    part_bytes = 0

    def __init__(self, url: str, settings: StoreSettings) -> None:
        self._bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
        self.url = f"s3://{self._bucket}/{self._prefix}"
        refuse_odd(settings.access_key, settings.session_token, self.url)
        self._client = S3Client(settings)

    def __enter__(self) -> Self:
        """Return the store itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the connections."""
        self._client.close()

    def list_files(self) -> Listing:
        """Return every object below the prefix; folder markers are folders."""
        return self._run(self._list_files())

    def find(self, path: str) -> Entry | None:
        """Return one object: of the keys that begin so, it is the first."""
        return self._run(self._find(path), path)

    def has_files(self) -> bool:
        """Say whether there is any object below the prefix that is not a folder marker."""
        return self._run(self._has_files())

    def is_file(self) -> bool:
        """Say whether there is an object with the name of the folder."""
        try:
            return bool(self._prefix) and self._run(self._is_file())
        except StoreNotFound:
            return False

    def download(
        self,
        files: Sequence[Entry],
        target: Path,
        meter: Meter,
        done: OnFile | None = None,
        _parts: ArrivedParts | None = None,
    ) -> list[FileRecord]:
        """Copy `files` to their paths below `target`, checked by MD5 where the store tells it."""
        return self._client.run(self._transfer(meter).download(files, target, done))

    def digest(self, files: Sequence[Entry], meter: Meter) -> list[FileRecord]:
        """Read `files` and return what arrives."""
        return self._client.run(self._transfer(meter).digest(files))

    def upload(
        self,
        source: Path,
        files: Sequence[Entry],
        meter: Meter,
        changed: list[str] | None = None,
    ) -> list[FileRecord]:
        """Copy `files` from the folder `source`; S3 shows an object when it is complete."""
        refuse_keys(self.url, files)
        return self._client.run(self._transfer(meter).upload(source, files, changed))

    def upload_chunks(self, path: str, chunks: Iterable[bytes]) -> FileRecord:
        """Write one object, in parts if it is large."""
        return self._run(self._transfer(Meter(None, ())).upload_chunks(path, chunks), path)

    def read(self, path: str) -> bytes:
        """Return the content of a small object."""
        return self._run(self._read(path), path)

    def write(self, path: str, data: bytes) -> None:
        """Write a small object."""
        self._run(self._call("put_object", path, Body=data), path)

    def create(self, path: str, data: bytes) -> bool:
        """Write a small object if there is none of that key, where the store knows `If-None-Match`.

        https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
        """
        try:
            self._run(self._call("put_object", path, Body=data, IfNoneMatch="*"), path)
        except StoreError as error:
            status = _status_of(error)
            if status in (HTTPStatus.PRECONDITION_FAILED, HTTPStatus.CONFLICT):
                return False
            if status != HTTPStatus.NOT_IMPLEMENTED:
                raise
            self.write(path, data)
        return True

    def make_folders(self, paths: Sequence[str]) -> None:
        """Put the empty objects that stand for folders in consoles of stores."""
        for path in paths:
            self.write(f"{path}/", b"")

    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects, one a request: the request for many needs a checksum that some lack."""

        async def delete(path: str) -> None:
            with s3_failures(self.url + path):
                await self._call("delete_object", path)

        self._client.run(each(paths, delete))

    def discard_unfinished(self, paths: Collection[str]) -> int:
        """Abort the multipart uploads of these objects."""
        return self._run(self._abort_uploads(paths))

    def prove_writing(self) -> None:
        """Write a small file, read and list it, and delete it."""
        prove_writing(self)

    def _transfer(self, meter: Meter) -> Transfer:
        return Transfer(self._client, self._bucket, self._prefix, meter)

    def _run(self, work: Coroutine[Any, Any, T], path: str = "") -> T:
        with s3_failures(self.url + path):
            return self._client.run(work)

    async def _call(self, operation: str, path: str, **parameters: Any) -> dict[str, Any]:
        key = self._prefix + path
        return await self._client.call(operation, Bucket=self._bucket, Key=key, **parameters)

    async def _list_files(self) -> Listing:
        files, folders = [], []
        async for item in objects(self._client, Bucket=self._bucket, Prefix=self._prefix):
            path = item["Key"][len(self._prefix) :]
            if _is_marker(item):
                folders += [path[:-1]] if path else []
            else:
                files.append(Entry(path, item["Size"], item.get("ETag", "")))
        return Listing(tuple(files), tuple(folders))

    async def _find(self, path: str) -> Entry | None:
        # A listing, which tells a missing bucket from a missing object; HEAD does not.
        key = self._prefix + path
        async for item in objects(self._client, Bucket=self._bucket, Prefix=key, MaxKeys=1):
            is_it = item["Key"] == key
            return Entry(path, item["Size"], item.get("ETag", "")) if is_it else None
        return None

    async def _has_files(self) -> bool:
        async for item in objects(self._client, Bucket=self._bucket, Prefix=self._prefix):
            if not _is_marker(item):
                return True
        return False

    async def _abort_uploads(self, paths: Collection[str]) -> int:
        where = {"Bucket": self._bucket, "Prefix": self._prefix, "EncodingType": "url"}
        num_aborted, marker = 0, dict[str, str]()
        while True:
            page = await self._client.call("list_multipart_uploads", **where, **marker)
            decode = unquote if page.get("EncodingType") == "url" else str
            for upload in page.get("Uploads", ()):
                key = decode(upload["Key"])
                path = key[len(self._prefix) :]
                # Some stores do not look at the prefix.
                if key.startswith(self._prefix) and path in paths:
                    await self._abort(path, upload["UploadId"])
                    num_aborted += 1
            if not page.get("IsTruncated"):
                return num_aborted
            marker = {
                "KeyMarker": decode(page["NextKeyMarker"]),
                "UploadIdMarker": page["NextUploadIdMarker"],
            }

    async def _abort(self, path: str, upload_id: str) -> None:
        with suppress(StoreNotFound), s3_failures(self.url + path):  # another one aborted it
            await self._call("abort_multipart_upload", path, UploadId=upload_id)

    async def _is_file(self) -> bool:
        key = self._prefix.rstrip("/")
        await self._client.call("head_object", Bucket=self._bucket, Key=key)
        return True

    async def _read(self, path: str) -> bytes:
        answer = await self._call("get_object", path)
        async with answer["Body"] as body:
            return bytes(await body.read())


def _status_of(error: StoreError) -> int:
    """Return the HTTP status of the answer that a failure comes from; 0 if there was none."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ClientError):
        cause = cause.__cause__
    return int(cause.response["ResponseMetadata"]["HTTPStatusCode"]) if cause else 0


def _is_marker(item: dict[str, Any]) -> bool:
    """Say whether an object stands for a folder, as consoles of stores and OBS make them."""
    return bool(item["Key"].endswith("/") and item["Size"] == 0)
