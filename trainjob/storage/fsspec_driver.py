"""The driver of fsspec for a url, and what it says went wrong as the errors of trainjob.

Drivers are packages of many authors: some leave errors out of a listing, take a name with ``*``
for a pattern, or delete more than they were asked to. So only their plainest methods are used, on
one file at a time, and what they say of a file is put into one form here.
"""

import base64
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import fsspec
from aiohttp.http_exceptions import HttpProcessingError
from fsspec.asyn import AsyncFileSystem
from fsspec.registry import known_implementations
from fsspec.spec import AbstractFileSystem

from trainjob.errors import (
    StoreDenied,
    StoreError,
    StoreNotFound,
    StoreUnavailable,
    TreeChanged,
)
from trainjob.storage.failures import failure

_OTHER_STORES = {"s3", "s3a", "file", "local"}
_VERSION_KEYS = (
    *("generation", "ETag", "etag", "e_tag", "checksum", "md5Hash", "md5"),
    *("Last-Modified", "last_modified", "LastModified", "mtime", "modified", "updated", "created"),
)
_AZURE = ("abfs", "abfss", "az")
_AZURE_BLOCK_BYTES = 8 << 20  # adlfs has 50 MiB, some of which each file that is copied holds
_UNREACHABLE = {"ServiceRequestError", "ServiceResponseError"}  # of azure.core
_MD5_KEYS = ("md5Hash", "Content-MD5", "content_md5")
# Without them a server that stops in the middle of an answer is waited for for five minutes.
_HTTP_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)


def is_known(scheme: str) -> bool:
    """Say whether fsspec knows a driver for urls of this scheme, installed or not."""
    return scheme in known_implementations and scheme not in _OTHER_STORES


def open_driver(url: str) -> AbstractFileSystem:
    """Return the driver for `url`, which takes its credentials from its own environment.

    Raises:
        StoreError: If its package is not installed, or the url holds what no folder's url can.
    """
    parts = urlsplit(url)
    if parts.password is not None:
        bare = f"{parts.scheme}://{parts.hostname}{parts.path}"
        do = "give it to the driver in the environment, since urls are kept in reports and logs"
        raise failure(StoreError, bare, "a password in the url", do)
    if is_http(url) and (parts.query or parts.fragment):
        bare = url.partition("?")[0].partition("#")[0]
        do = "give the url of the folder alone"
        raise failure(StoreError, bare, "a query or fragment after the folder", do)
    try:
        driver = fsspec.get_filesystem_class(parts.scheme)
    except ImportError as error:
        found = f"the driver for {parts.scheme}:// is not installed"
        do = f"install it with pip ({_one_line(error)})"
        raise failure(StoreError, url, found, do) from error
    options = driver._get_kwargs_from_urls(url)
    if is_http(url):
        # Paths are quoted by us; compressed answers would have another size than the file.
        options |= {"encoded": True, "simple_links": False}
        # One request a file: many servers know no ranges.
        options["block_size"] = 0
        headers = {"Accept-Encoding": "identity"}
        options["client_kwargs"] = {"timeout": _HTTP_TIMEOUT, "headers": headers}
    if parts.scheme in _AZURE:
        options["blocksize"] = _AZURE_BLOCK_BYTES
    with driver_failures(url):
        made = driver(**options, skip_instance_cache=True)
    if parts.scheme in _AZURE and parts.username:
        _refuse_other_account(url, (parts.hostname or "").partition(".")[0], made)
    return made


def _refuse_other_account(url: str, asked: str, driver: AbstractFileSystem) -> None:
    """See that the driver asks the account of a url: it prefers that of a connection string."""
    # Not the name that the driver itself has, which is that of the url.
    found = getattr(getattr(driver, "service_client", None), "account_name", None)
    if found and found.lower() != asked:
        said = f"asked for the account {asked!r}, found {found!r} in the environment of the driver"
        raise failure(StoreError, url, said, "set AZURE_STORAGE_… to those of the url")


def is_http(url: str) -> bool:
    """Say whether the paths of a store are urls, with their characters quoted."""
    return url.startswith(("http://", "https://"))


def lists_flat(driver: AbstractFileSystem) -> bool:
    """Say whether the driver lists a tree by itself.

    The listing that fsspec has for the others leaves out folders that cannot be listed.
    """
    if isinstance(driver, AsyncFileSystem):
        return type(driver)._find is not AsyncFileSystem._find
    return type(driver).find is not AbstractFileSystem.find


def version_in(info: Mapping[str, Any], like: str = "") -> str:
    """Return what tells this version of a file from others; empty if the driver says nothing.

    Args:
        info: What the driver says of the file.
        like: A version that was told earlier: the same kind is returned, since a listing may
            tell another than a look at one file.
    """
    asked, is_asked, _ = like.partition("=")
    for key in (asked,) if is_asked else _VERSION_KEYS:
        if value := info.get(key):
            return f"{key}={value.timestamp() if isinstance(value, datetime) else value}"
    return ""


def md5_in(info: Mapping[str, Any]) -> str | None:
    """Return the MD5 in hex that the store keeps of a file, if it tells one (RFC 1864)."""
    told: Any = {**info, **(info.get("content_settings") or {})}
    value = next((told[key] for key in _MD5_KEYS if told.get(key)), None)
    if isinstance(value, str):
        value = base64.b64decode(value)
    return bytes(value).hex() if value else None


@contextmanager
def driver_failures(url: str) -> Iterator[None]:
    """Raise whatever the driver says of `url` as a `StoreError`."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        # Any class: each driver raises those of the packages that it is made of.
        raise _failure_of(error, url) from error


def _failure_of(error: Exception, url: str) -> StoreError:
    if is_http(url) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the driver says "not found" for whatever went wrong
    if refusal := _refusal(_status_of(error), url):
        return refusal
    if isinstance(error, FileNotFoundError):
        return _not_found(url)
    # The driver of gs:// has no class of its own for it.
    if isinstance(error, PermissionError) or str(error).startswith("Forbidden: "):
        do = "ask for the right, or use other credentials"
        return failure(StoreDenied, url, "the credentials are not allowed to do this", do)
    if isinstance(error, NotImplementedError):
        scheme = url.partition("://")[0]
        do = "use a store that can be written, such as s3://bucket/prefix/ or a folder"
        return failure(StoreError, url, f"{scheme}:// can only be read", do)
    is_broken = isinstance(error, OSError | aiohttp.ClientError | HttpProcessingError)
    if is_broken or type(error).__name__ in _UNREACHABLE:
        found = f"no whole answer from the store ({type(error).__name__})"
        return failure(StoreUnavailable, url, found, "check the address and the network")
    found = f"the driver failed ({type(error).__name__}: {_one_line(error)})"
    return failure(StoreError, url, found, "check the url and the environment of the driver")


def _refusal(status: int, url: str) -> StoreError | None:
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        do = "ask for the right, or use other credentials"
        return failure(StoreDenied, url, f"the store refuses these credentials ({status})", do)
    if status == HTTPStatus.NOT_FOUND:
        return _not_found(url)
    if status == HTTPStatus.PRECONDITION_FAILED:
        found, do = "the file changed while it was copied", "run again when nothing writes to it"
        return failure(TreeChanged, url, found, do)
    passing = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in passing:
        return failure(
            StoreUnavailable, url, f"the store cannot answer now ({status})", "try again"
        )
    return None


def _not_found(url: str) -> StoreNotFound:
    found = "no such file" if is_http(url) else "no such file, folder or bucket"
    return failure(StoreNotFound, url, found, "check the url")


def _status_of(error: BaseException) -> int:
    """Return the HTTP status of an answer, under any of the names that drivers have for it.

    Some drivers put the error that has it into one of their own.
    """
    for name in ("status", "status_code", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int) and value in set(HTTPStatus):
            return value
    return _status_of(error.__cause__) if error.__cause__ else 0


def _one_line(error: Exception) -> str:
    """Return the text of an error without the queries of urls, which may be signed."""
    text = re.sub(r"\?\S*", "?…", " ".join(str(error).split()))
    return text.replace(";", ",") or type(error).__name__
