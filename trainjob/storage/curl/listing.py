"""Lists the objects below a prefix, page by page.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
"""

import re
import time
from collections.abc import Iterator
from functools import cache, partial
from html import unescape

from trainjob.errors import StoreUnavailable
from trainjob.storage.curl import retry
from trainjob.storage.curl.page import Found, Page, read_page
from trainjob.storage.curl.request import Request
from trainjob.storage.curl.transport import Transport
from trainjob.storage.failures import failure

_TOKEN = "continuation-token"  # noqa: S105 - of a page, not of a person
_IS_TRUNCATED = b"<IsTruncated>true<"
_TOKEN_ELEMENT = re.compile(rb"<NextContinuationToken>([^<]+)<")


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
        read = cache(partial(read_page, body, prefix))  # once: meanwhile, or when it is needed
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


def _ask_again(transport: Transport, query: dict[str, str]) -> Page:
    """Return a page that came once already and could not be read."""
    request = Request("GET", "", query=query)
    for tries in range(1, retry.TRIES):
        time.sleep(retry.pause_s(tries))
        if page := read_page(transport.ask(request).body, query["prefix"]):
            return page
    raise _no_listing(transport.url(query["prefix"]))


def _following(query: dict[str, str], body: bytes) -> dict[str, str] | None:
    """Return what to ask for next, as far as that can be told before the page is read."""
    found = _TOKEN_ELEMENT.search(body) if _IS_TRUNCATED in body else None
    return {**query, _TOKEN: unescape(found[1].decode(errors="replace"))} if found else None


def _no_listing(url: str) -> StoreUnavailable:
    found = "what the store answers is no list of its objects"
    return failure(StoreUnavailable, url, found, "check the endpoint")
