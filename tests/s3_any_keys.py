"""A store on 127.0.0.1 that holds any key at all, which real servers refuse to hold.

It lists and gives objects, byte for byte as S3 does, and looks at no signature. What it is for are
the names; everything else is tested on a real server.
"""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from trainjob.storage.settings import StoreSettings


class AnyKeyServer(ThreadingHTTPServer):
    """Serves `objects` by key, from the bucket ``b``.

    Args:
        objects: The content of every key.
        page_keys: How many keys a page of the listing has.
        is_encoding: Whether keys are listed percent-encoded when the client asks for it.
    """

    request_queue_size = 256

    def __init__(
        self, objects: Mapping[str, bytes], *, page_keys: int = 1000, is_encoding: bool = True
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects = dict(objects)
        self.page_keys = page_keys
        self.is_encoding = is_encoding
        self.asked: list[str] = []
        self.settings = StoreSettings(
            endpoint_url=f"http://127.0.0.1:{self.server_port}",
            region="us-east-1",
            access_key="k",
            secret_key="s",
            addressing_style="path",
        )

    def listing(self, prefix: str, after: str) -> bytes:
        """Return a page of the keys that come after `after` in the order of their bytes."""
        keys = sorted((key for key in self.objects if key.startswith(prefix)), key=_bytes_of)
        rest = [key for key in keys if _bytes_of(key) > _bytes_of(after)]
        page = rest[: self.page_keys]
        items = "".join(map(self._item, page))
        is_cut = len(rest) > len(page)
        token = quote(page[-1]) if is_cut else ""
        encoding = "<EncodingType>url</EncodingType>" if self.is_encoding else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>'
            f"{encoding}<IsTruncated>{str(is_cut).lower()}</IsTruncated>"
            f"<NextContinuationToken>{token}</NextContinuationToken>{items}"
            "</ListBucketResult>"
        ).encode()

    def _item(self, key: str) -> str:
        data = self.objects[key]
        name = quote(key, errors="surrogateescape") if self.is_encoding else escape(key)
        return (
            f"<Contents><Key>{name}</Key><Size>{len(data)}</Size>"
            f"<ETag>{escape(_etag_of(data))}</ETag></Contents>"
        )


@contextmanager
def any_keys(server: AnyKeyServer) -> Iterator[AnyKeyServer]:
    """Serve until the block ends."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: AnyKeyServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True, errors="surrogateescape")
        self.server.asked.append(self.path)
        if "list-type" in query:
            after = unquote(query.get("continuation-token", [""])[0], errors="surrogateescape")
            self._answer(200, self.server.listing(query["prefix"][0], after), '""')
            return
        # The path as it was sent: urlsplit takes no key for an authority, nor ".." for a step.
        key = unquote(parts.path.removeprefix("/b/"), errors="surrogateescape")
        data = self.server.objects.get(key)
        if data is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>", '""')
        else:
            self._answer(200, data, _etag_of(data))

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: int, body: bytes, etag: str) -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", etag)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def _bytes_of(key: str) -> bytes:
    return key.encode(errors="surrogateescape")


def _etag_of(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
