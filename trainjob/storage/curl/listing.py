"""Lists the objects below a prefix, page by page.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
"""

import re
import time
from collections.abc import Iterator
from functools import cache, partial
from html import unescape
from typing import NamedTuple
from urllib.parse import unquote_plus
from xml.parsers import expat

from trainjob.errors import StoreUnavailable
from trainjob.storage.curl import retry
from trainjob.storage.curl.request import Request
from trainjob.storage.curl.transport import Transport
from trainjob.storage.failures import failure

_TOKEN = "continuation-token"  # noqa: S105 - of a page, not of a person
_IS_TRUNCATED = b"<IsTruncated>true<"
_TOKEN_ELEMENT = re.compile(rb"<NextContinuationToken>([^<]+)<")


class Found(NamedTuple):
    """An object of a listing; `etag` has its quotes, and is empty if the store tells none."""

    key: str
    size_bytes: int
    etag: str

    @property
    def is_marker(self) -> bool:
        """Whether it stands for a folder, as consoles of stores and OBS make them."""
        return self.size_bytes == 0 and self.key.endswith("/")


def pages(transport: Transport, prefix: str) -> Iterator[list[Found]]:
    """Yield the objects whose keys begin with `prefix`, up to 1,000 at a time.

    From the second page on, one is read while the store makes the next.

    Raises:
        StoreUnavailable: For an answer that is no listing, such as the log-in page of a network.
        StoreError: For all that can go wrong with a request.
    """
    query = {"list-type": "2", "encoding-type": "url", "prefix": prefix}
    body = transport.ask(Request("GET", "", query=query)).body
    while True:
        read = cache(partial(_read, body, prefix))  # once: meanwhile, or when it is needed
        following = _following(query, body) if _TOKEN in query else None
        if following:
            body = transport.ask(Request("GET", "", query=following), read).body
        page = read() or _ask_again(transport, query)
        yield page.found
        if not page.is_truncated:
            return
        if page.token in ("", query.get(_TOKEN)):  # it would never end
            raise _no_listing(transport.url(prefix))
        if following is None or following[_TOKEN] != page.token:
            following = {**query, _TOKEN: page.token}
            body = transport.ask(Request("GET", "", query=following)).body
        query = following


class _Page(NamedTuple):
    found: list[Found]
    token: str
    is_truncated: bool


def _ask_again(transport: Transport, query: dict[str, str]) -> _Page:
    """Return a page that came once already and could not be read."""
    request = Request("GET", "", query=query)
    for tries in range(1, retry.TRIES):
        time.sleep(retry.pause_s(tries))
        if page := _read(transport.ask(request).body, query["prefix"]):
            return page
    raise _no_listing(transport.url(query["prefix"]))


def _following(query: dict[str, str], body: bytes) -> dict[str, str] | None:
    """Return what to ask for next, as far as that can be told before the page is read."""
    found = _TOKEN_ELEMENT.search(body) if _IS_TRUNCATED in body else None
    return {**query, _TOKEN: unescape(found[1].decode(errors="replace"))} if found else None


def _read(body: bytes, prefix: str) -> _Page | None:
    """Return the page, or None if it is none of this prefix."""
    try:
        page = _parse(body)
    except (expat.ExpatError, KeyError, ValueError):
        return None
    return page if all(item.key.startswith(prefix) for item in page.found) else None


def _parse(body: bytes) -> _Page:
    parser = expat.ParserCreate()
    parser.buffer_text = True
    rows: list[tuple[str, str, str]] = []
    about: dict[str, str] = {}
    row: dict[str, str] = {}
    text: list[str] = []

    def start(name: str, _: dict[str, str]) -> None:
        if name == "Contents":
            row.clear()
        about.setdefault("root", name)
        text.clear()

    def end(name: str) -> None:
        if name in ("Key", "Size", "ETag"):
            row[name] = "".join(text)
        elif name == "Contents":
            rows.append((row["Key"], row["Size"], row.get("ETag", "")))
        elif name in ("EncodingType", "IsTruncated", "NextContinuationToken"):
            about[name] = "".join(text)
        text.clear()

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text.append
    parser.Parse(body, True)
    if about["root"] != "ListBucketResult":
        raise ValueError(about["root"])
    # A store that does not know encoding-type gives the keys as they are.
    is_encoded = about.get("EncodingType") == "url"
    return _Page(
        found=[
            Found(_decoded(key) if is_encoded else key, int(size), etag) for key, size, etag in rows
        ],
        token=about.get("NextContinuationToken", ""),
        is_truncated=about.get("IsTruncated") == "true",
    )


def _decoded(key: str) -> str:
    """Return the key; bytes that are no UTF-8 stay visible as such, and are refused later."""
    return unquote_plus(key, errors="surrogateescape") if "%" in key or "+" in key else key


def _no_listing(url: str) -> StoreUnavailable:
    found = "what the store answers is no list of its objects"
    return failure(StoreUnavailable, url, found, "check the endpoint")
