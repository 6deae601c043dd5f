"""One request to an S3 bucket and its answer, as the callers of `Transport` see them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from trainjob.errors import StoreError

Sink = Callable[[list[bytes]], object]
"""Takes the next pieces of the body of a good answer, in their order."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes of a file of this machine as the body of a request; read while they are sent.

    Attributes:
        file: The file. It is opened for each try, and closed.
        offset: Where the bytes begin.
        size_bytes: How many there are; a file that is shorter by now fails the request.
    """

    file: Path
    offset: int
    size_bytes: int

    def open(self) -> BinaryIO:
        """Return the opened file at its place; the caller closes it."""
        opened = self.file.open("rb", buffering=0)
        opened.seek(self.offset)
        return opened


@dataclass(slots=True)
class Request:
    """One request below a bucket. It may be sent several times until there is an answer.

    Attributes:
        method: ``GET``, ``HEAD``, ``PUT``, ``POST`` or ``DELETE``.
        key: The exact key, nothing of it encoded; empty for the bucket itself.
        query: Names and values, nothing of it encoded, such as ``{"partNumber": "1"}``.
        headers: Such as ``{"if-match": '"etag"'}``, with names in lower case. All are signed.
        body: What is sent. Bytes for small bodies, a `FilePart` for the others.
        sha256: Hex digest of the body, if the caller has it: it is signed, so that the store
            refuses other bytes. Of a body of bytes it is found if it is not given.
        answers: Statuses beside 2xx that the caller wants as an answer, such as 404 or 412.
        refusals: Codes of errors that are wanted as an answer, such as ``InvalidPart``.
        sink: Makes what takes the body, anew for every try; None: the body is `Answer.body`.
        weight_bytes: What the request takes of the budget for bytes under way: about the larger
            one of its body and that of its answer.
        tag: Whatever the caller wants to find again in the answer.
    """

    method: str
    key: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | FilePart | None = None
    sha256: str | None = None
    answers: frozenset[int] = frozenset()
    refusals: frozenset[str] = frozenset()
    sink: Callable[[], Sink] | None = None
    weight_bytes: int = 0
    tag: Any = None

    @property
    def operation(self) -> str:
        """What S3 calls it, such as ``PutObject``; for messages."""
        if not self.key:
            return "ListMultipartUploads" if "uploads" in self.query else "ListObjectsV2"
        if "uploads" in self.query:
            return "CreateMultipartUpload"
        if "uploadId" in self.query:
            names = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload"}
            return names.get(self.method, "AbortMultipartUpload")
        return f"{self.method.capitalize()}Object"

    @property
    def body_bytes(self) -> int:
        """The size of what is sent."""
        if self.body is None:
            return 0
        return self.body.size_bytes if isinstance(self.body, FilePart) else len(self.body)

    def open_body(self) -> BinaryIO:
        """Return the body as an open file; the caller closes it."""
        if isinstance(self.body, FilePart):
            return self.body.open()
        return BytesIO(self.body or b"")


@dataclass(frozen=True, slots=True)
class Again:
    """What to do with an answer that is not what was asked for: to ask once more, after a pause.

    Attributes:
        error: Raised if it was asked for often enough, broken connections included.
    """

    error: StoreError


@dataclass(frozen=True, slots=True)
class Answer:
    """What a store answered to a request: 2xx, or one of the statuses that the caller asked for.

    Attributes:
        request: The request.
        status: The HTTP status.
        head: The lines of the header as they came.
        pieces: The body in pieces; empty if the request has a sink.
    """

    request: Request
    status: int
    head: list[bytes]
    pieces: list[bytes]

    @property
    def is_ok(self) -> bool:
        """Whether the store did what it was asked."""
        return 200 <= self.status < 300

    @property
    def body(self) -> bytes:
        """The body."""
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)

    def header(self, name: str) -> str:
        """Return the value of a header; empty if it is not there. `name` is in lower case."""
        start = f"{name}:".encode()
        length = len(start)
        # The last one: before it may stand the header of an answer 100.
        for line in reversed(self.head):
            if line[:length].lower() == start:
                return line[length:].strip().decode("latin-1")
        return ""

    @property
    def etag(self) -> str:
        """The ETag with its quotes; empty if there is none."""
        return self.header("etag")
