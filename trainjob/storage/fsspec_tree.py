"""The names of a tree in a driver of fsspec: which files there are, and what a path is called."""

import html
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

from fsspec.spec import AbstractFileSystem

from trainjob.errors import StoreError, StoreNotFound
from trainjob.storage.failures import failure
from trainjob.storage.fsspec_driver import driver_failures, is_http, lists_flat, version_in
from trainjob.storage.listing import Entry

_NO_PLACE = re.compile(r"(?:about|data|javascript|mailto|tel):", re.IGNORECASE)
"""How links begin that lead to no file. A file that is called so is ``./mailto:`` or ``mailto%3A``
(RFC 3986 4.2); the driver takes every link for a name in the folder."""


class FsspecTree:
    """The folder at `url`, which ends in ``/``; `root` is what the driver calls it."""

    def __init__(self, driver: AbstractFileSystem, url: str) -> None:
        self._driver = driver
        self._url = url
        self.root = str(driver._strip_protocol(url)).rstrip("/") + "/"

    def walk(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield path and description of everything below the folder; nothing if it is not there."""
        self._driver.invalidate_cache()
        is_flat = lists_flat(self._driver)
        try:
            with driver_failures(self._url):
                items = self._find() if is_flat else self._driver.ls(self.root, detail=True)
        except StoreNotFound:
            return
        seen = set()
        while items:
            info = items.pop()
            path = self._path(info["name"])
            if path is None or path in seen:
                continue
            seen.add(path)
            if info["name"].endswith("/") and not info.get("size"):
                # What consoles of stores make of a new folder is a file to some drivers.
                info = {**info, "type": "directory"}
            yield path, info
            if info["type"] == "directory" and not is_flat:
                with driver_failures(self._url + path):
                    items += self._driver.ls(f"{self.place(path)}/", detail=True)

    def info(self, path: str) -> dict[str, Any]:
        """Return what the driver says of a file now."""
        self._driver.invalidate_cache()
        with driver_failures(self._url + path):
            return dict(self._driver.info(self.place(path)))

    def entry(self, path: str, info: dict[str, Any]) -> Entry:
        """Return the entry of a file that the driver describes so."""
        if info.get("size") is None:
            do = "use a server that tells the size of files"
            raise failure(StoreError, self._url + path, "a file of unknown size", do)
        return Entry(path, int(info["size"]), version_in(info))

    def place(self, path: str) -> str:
        """Return what the driver calls a path below the folder."""
        return self.root + (quote(path) if is_http(self._url) else path)

    def _find(self) -> list[dict[str, Any]]:
        found = self._driver.find(self.root, withdirs=True, detail=True)
        # A list is what the driver of Azure gives if the url is a file, which holds nothing.
        return list(found.values()) if isinstance(found, Mapping) else []

    def _path(self, name: str) -> str | None:
        """Return the path below the folder that the driver calls `name`; None if it is none.

        Pages of servers hold links that are no files: to other folders, to other orders of the
        same page.
        """
        rest = name.removeprefix(self.root).rstrip("/")
        if not name.startswith(self.root) or not rest:
            return None
        if is_http(self._url):
            link = html.unescape(rest)  # as it stands in the page
            return None if "?" in link or "#" in link or _NO_PLACE.match(link) else unquote(link)
        return rest
