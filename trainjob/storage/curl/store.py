"""A prefix of an S3 bucket as a store, over libcurl."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from trainjob.errors import StoreError
from trainjob.storage.arrived_parts import ArrivedParts
from trainjob.storage.curl import arriving_file
from trainjob.storage.curl.arrival import wrong_digest
from trainjob.storage.curl.download import Download
from trainjob.storage.curl.listing import pages
from trainjob.storage.curl.multipart import discard_unfinished
from trainjob.storage.curl.objects import create, make_folders, upload_chunks
from trainjob.storage.curl.page import Found
from trainjob.storage.curl.reading import read_all
from trainjob.storage.curl.request import Answer, Request
from trainjob.storage.curl.told import is_doubtful, is_of, told_of
from trainjob.storage.curl.transport import Transport
from trainjob.storage.curl.upload import upload_files
from trainjob.storage.keys import refuse_keys
from trainjob.storage.listing import Entry, Listing
from trainjob.storage.manifest import FileRecord, OnFile
from trainjob.storage.meter import Meter
from trainjob.storage.settings import StoreSettings
from trainjob.storage.write_probe import prove_writing

_NOT_FOUND = 404


class CurlStore:
    """The folder at ``s3://bucket/prefix/``; see `trainjob.storage.store.Store`."""

    creates_in_one_step = True

    def __init__(self, url: str, settings: StoreSettings) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
        self.url = f"s3://{bucket}/{self._prefix}"
        self._transport = Transport(bucket, settings)

    @property
    def part_bytes(self) -> int:
        """The size of the parts in which large objects come."""
        return arriving_file.PART_BYTES

    def __enter__(self) -> Self:
        """Return the store itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the connections."""
        self._transport.close()

    def list_files(self) -> Listing:
        """Return every object below the prefix; folder markers are folders."""
        files, folders = [], []
        start = len(self._prefix)
        for item in self._found():
            path = item.key[start:]
            if not item.is_marker:
                files.append(Entry(path, item.size_bytes, item.etag))
            elif path:
                folders.append(path[:-1])
        return Listing(tuple(files), tuple(folders))

    def find(self, path: str) -> Entry | None:
        """Return one object: of the keys that begin so, it is the first."""
        # A listing, which tells a missing bucket from a missing object; HEAD does not.
        first = next(self._found(path), None)
        if first is None or first.key != self._prefix + path:
            return None
        return Entry(path, first.size_bytes, first.etag)

    def has_files(self) -> bool:
        """Say whether there is any object below the prefix that is not a folder marker."""
        return any(not item.is_marker for item in self._found())

    def is_file(self) -> bool:
        """Say whether there is an object with the name of the folder."""
        if not self._prefix:
            return False
        request = Request("HEAD", self._prefix.rstrip("/"), answers=frozenset({_NOT_FOUND}))
        return self._transport.ask(request).is_ok

    def download(
        self,
        files: Sequence[Entry],
        target: Path,
        meter: Meter,
        done: OnFile | None = None,
        parts: ArrivedParts | None = None,
    ) -> list[FileRecord]:
        """Copy `files` to their paths below `target`, checked by what the store tells of them."""
        return Download(self._transport, self._prefix, target, meter, done, parts).run(files)

    def digest(self, files: Sequence[Entry], meter: Meter) -> list[FileRecord]:
        """Read `files` and return what arrives."""
        return read_all(self._transport, self._prefix, files, meter)

    def upload(
        self,
        source: Path,
        files: Sequence[Entry],
        meter: Meter,
        changed: list[str] | None = None,
    ) -> list[FileRecord]:
        """Copy `files` from the folder `source`; S3 shows an object when it is complete."""
        refuse_keys(self.url, files)
        return upload_files(self._transport, self._prefix, source, files, meter, changed)

    def upload_chunks(self, path: str, chunks: Iterable[bytes]) -> FileRecord:
        """Write one object, in parts if it is large."""
        return upload_chunks(self._transport, self._prefix, path, chunks)

    def read(self, path: str) -> bytes:
        """Return the content of a small object, checked by MD5 where the store tells it."""

        def fault(answer: Answer) -> StoreError | None:
            told = told_of(answer, answer.etag)
            is_right = not told or is_of(told, answer.body, "") or is_doubtful(told, answer)
            return None if is_right else wrong_digest(self.url + path, told)

        return self._transport.ask(Request("GET", self._prefix + path), fault=fault).body

    def write(self, path: str, data: bytes) -> None:
        """Write a small object."""
        self._transport.ask(Request("PUT", self._prefix + path, body=data))

    def create(self, path: str, data: bytes) -> bool:
        """Write a small object if there is none of that key, where the store knows `If-None-Match`.

        https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
        """
        return create(self._transport, self._prefix + path, data)

    def make_folders(self, paths: Sequence[str]) -> None:
        """Put the empty objects that stand for folders in consoles of stores."""
        make_folders(self._transport, self._prefix, paths)

    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects, one a request: the request for many needs a checksum that some lack."""
        gone = frozenset({_NOT_FOUND})
        self._transport.run(
            (Request("DELETE", self._prefix + path, answers=gone) for path in paths),
            lambda _: None,
        )

    def discard_unfinished(self, paths: Collection[str]) -> int:
        """Abort the multipart uploads of these objects."""
        return discard_unfinished(self._transport, self._prefix, paths)

    def prove_writing(self) -> None:
        """Write a small file, read and list it, and delete it."""
        prove_writing(self)

    def _found(self, start: str = "") -> Iterator[Found]:
        for page in pages(self._transport, self._prefix + start):
            yield from page
