"""One libcurl handle, prepared for one request after the other.

Every callback is a C function (``list.append``, ``FileIO.read``): a signal handler that raised
within a callback written in Python would be printed and lost by pycurl.
"""

from http import HTTPStatus
from typing import BinaryIO

import pycurl

from trainjob.storage.curl.keys import Keys
from trainjob.storage.curl.request import FilePart, Request, Sink
from trainjob.storage.pace import Pace, Window

STALL_S = 60
"""After so many seconds in which nothing moves, or too little, a transfer counts as broken."""
CONNECT_TIMEOUT_S = 10

_SUPPRESS_CONNECT_HEADERS = 265  # of curl.h; pycurl 7.49 has no name for it
_RECEIVE_BUFFER_BYTES = 128 << 10
_SEND_BUFFER_BYTES = 1 << 20


class Handle:
    """A libcurl handle and the try of a request that it works on.

    Attributes:
        request: The request.
        tries: Which try of it this is, from 1.
        keys: What signed the try; None if nothing did.
        head: The lines of the header of the answer.
        pieces: What has come of its body and was not given away.
    """

    def __init__(self, ca_bundle: str | None) -> None:
        self.curl = pycurl.Curl()
        self.request: Request | None = None
        self.tries = 0
        self.keys: Keys | None = None
        self.head: list[bytes] = []
        self.pieces: list[bytes] = []
        self._ca_bundle = ca_bundle
        self._shape = ""
        self._body: BinaryIO | None = None
        self._sink: Sink | None = None
        self._window: Window | None = None

    def prepare(self, request: Request, url: str, head: list[str], tries: int) -> None:
        """Set the handle up for one try of `request`; `head` are the lines of its header."""
        self.request, self.tries = request, tries
        curl = self.curl
        has_file = isinstance(request.body, FilePart)
        shape = f"{request.method} {has_file}"
        if shape != self._shape:
            self._reset(request.method, has_file)
            self._shape = shape
        self.head, self.pieces, self._window = [], [], None
        curl.setopt(pycurl.URL, url)
        curl.setopt(pycurl.HTTPHEADER, head)
        curl.setopt(pycurl.HEADERFUNCTION, self.head.append)
        curl.setopt(pycurl.WRITEFUNCTION, self.pieces.append)
        if has_file:
            self._body = request.open_body()
            curl.setopt(pycurl.INFILESIZE_LARGE, request.body_bytes)
            curl.setopt(pycurl.READFUNCTION, self._body.read)
        elif request.method in ("PUT", "POST"):
            curl.setopt(pycurl.POSTFIELDS, request.body or b"")
        self._sink = request.sink() if request.sink else None

    def is_too_slow(self, pace: Pace) -> bool:
        """Say whether the try moved too little for some time, see `trainjob.storage.pace`.

        It is watched from the first call on: most tries end before there is one.
        """
        moved = self.curl.getinfo(pycurl.SIZE_DOWNLOAD_T) + self.curl.getinfo(pycurl.SIZE_UPLOAD_T)
        if self._window is None:
            self._window = Window(pace, STALL_S, int(moved))
        return self._window.is_too_slow(int(moved))

    def drain(self) -> None:
        """Give what has arrived of a good answer to the sink, if there is one."""
        if self._sink is not None and self.pieces and self.is_good:
            self._sink(self.pieces)
            self.pieces.clear()

    def finish(self) -> None:
        """Let go of the request."""
        self.request = self._sink = None
        if self._body is not None:
            self._body.close()
            self._body = None

    def close(self) -> None:
        """Close the handle, and with it a connection that is in the middle of a transfer."""
        self.finish()
        self.curl.close()

    @property
    def status(self) -> int:
        """The HTTP status of the answer; 0 if there is none yet."""
        return int(self.curl.getinfo(pycurl.RESPONSE_CODE))

    @property
    def is_good(self) -> bool:
        """Whether the store does what it was asked."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    def _reset(self, method: str, has_file: bool) -> None:
        curl = self.curl
        curl.reset()
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        curl.setopt(_SUPPRESS_CONNECT_HEADERS, 1)  # what a proxy says is not of the object
        curl.setopt(pycurl.PATH_AS_IS, 1)  # keys may hold . and .. and empty parts
        curl.setopt(pycurl.TCP_NODELAY, 1)
        curl.setopt(pycurl.TCP_KEEPALIVE, 1)
        curl.setopt(pycurl.BUFFERSIZE, _RECEIVE_BUFFER_BYTES)
        curl.setopt(pycurl.CONNECTTIMEOUT, CONNECT_TIMEOUT_S)
        curl.setopt(pycurl.LOW_SPEED_LIMIT, 1)
        curl.setopt(pycurl.LOW_SPEED_TIME, STALL_S)
        if self._ca_bundle is not None:
            curl.setopt(pycurl.CAINFO, self._ca_bundle)
        if method == "HEAD":
            curl.setopt(pycurl.NOBODY, 1)
        elif has_file:
            curl.setopt(pycurl.UPLOAD, 1)
            curl.setopt(pycurl.UPLOAD_BUFFERSIZE, _SEND_BUFFER_BYTES)
        elif method in ("PUT", "POST"):
            curl.setopt(pycurl.POST, 1)
        if method != "HEAD":
            curl.setopt(pycurl.CUSTOMREQUEST, method)
