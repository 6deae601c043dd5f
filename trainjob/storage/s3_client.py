"""A connection to an S3 store: s3fs's, on fsspec's loop, for callers without a loop.

It does not know about trees. Requests run on the one loop that fsspec keeps in a thread of its
own, so that any thread and any other loop of the process can use a store.
"""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import fsspec.asyn
from aiobotocore.session import AioSession
from botocore.loaders import create_loader
from s3fs import S3FileSystem

from trainjob.errors import StoreUnavailable
from trainjob.storage.deadline import check_deadline, has_deadline
from trainjob.storage.key_failures import chain_failures
from trainjob.storage.settings import StoreSettings

T = TypeVar("T")
R = TypeVar("R")

MAX_REQUESTS = 16
_CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
"""After so many seconds in which nothing comes, or too little, an answer counts as broken."""
_TRIES = 3
_CLOSE_TIMEOUT_S = 5
_LOOK_AT_DEADLINE_S = 0.2
_API_MODELS = create_loader()
"""Botocore's description of S3, read once: reading it for every connection takes 70 ms each."""


class S3Client:
    """Makes S3 requests. Connects with the first one; closes with `close` or when forgotten."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._files: S3FileSystem | None = None
        self._connecting = asyncio.Lock()
        self._closer: weakref.finalize[..., S3Client] | None = None

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Make one request, such as ``get_object``, and return the answer.

        Server errors and broken connections are tried again by botocore with back-off.
        """
        async with self._connecting:
            if self._files is None:
                self._files = await self._connect()
        answer: dict[str, Any] = await self._files._call_s3(operation, **parameters)
        return answer

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop of fsspec, in the caller's context, and wait for it.

        When the wait is interrupted, the work is cancelled and has ended before this returns.

        Raises:
            StoreUnavailable: If the deadline of the context is over.
        """
        try:
            check_deadline("the store")
        except StoreUnavailable:
            work.close()
            raise
        ended = threading.Event()

        async def tracked() -> T:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(tracked(), fsspec.asyn.get_loop())
        try:
            return _result_in_time(future)
        except BaseException:
            if not future.done():
                future.cancel()
                ended.wait(_CLOSE_TIMEOUT_S)
            raise

    def close(self) -> None:
        """Close the connections. A later request connects again."""
        if self._closer is not None:
            self._closer()
        self._files = None

    async def _connect(self) -> S3FileSystem:
        session = AioSession()
        session.register_component("data_loader", _API_MODELS)
        files = S3FileSystem(
            **_s3fs_arguments(self._settings),
            session=session,
            asynchronous=True,
            skip_instance_cache=True,
            use_listings_cache=False,
        )
        # botocore tries again; s3fs doing so as well would multiply the waits.
        files.retries = 1
        if self._settings.access_key is None:
            with chain_failures():
                await session.get_credentials()  # the client has them from the session
        client = await files.set_session()
        self._closer = weakref.finalize(self, _close, client)
        return files


def _result_in_time(future: "Future[T]") -> T:
    if not has_deadline():
        return future.result()
    # Somebody may set the deadline while this waits, so it is asked again and again.
    while not wait([future], timeout=_LOOK_AT_DEADLINE_S).done:
        check_deadline("the store")
    return future.result()


async def each(
    items: Sequence[T], work: Callable[[T], Awaitable[R]], num_workers: int = MAX_REQUESTS
) -> list[R]:
    """Do `work` for all items, some at a time, and return the results in order.

    The first error cancels the rest and is raised when all have ended.
    """
    results: dict[int, R] = {}
    todo = iter(enumerate(items))

    async def worker() -> None:
        for index, item in todo:
            results[index] = await work(item)

    workers = [asyncio.create_task(worker()) for _ in range(min(num_workers, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [results[index] for index in range(len(items))]


async def objects(client: S3Client, **parameters: Any) -> AsyncIterator[dict[str, Any]]:
    """Yield the objects that ``list_objects_v2`` finds, one by one."""
    token: dict[str, str] = {}
    while True:
        page = await client.call("list_objects_v2", **parameters, **token)
        for item in page.get("Contents", ()):
            yield item
        if not page.get("IsTruncated"):
            return
        if "NextContinuationToken" not in page:
            raise ValueError("the store lists in a way of its own, which does not tell of all")
        token = {"ContinuationToken": page["NextContinuationToken"]}


def _s3fs_arguments(settings: StoreSettings) -> dict[str, Any]:
    client = {
        "region_name": settings.region,
        "verify": str(settings.ca_bundle) if settings.ca_bundle else None,
    }
    return {
        "key": settings.access_key,
        "secret": settings.secret_key,
        "token": settings.session_token,
        "endpoint_url": settings.endpoint_url,
        "client_kwargs": {name: value for name, value in client.items() if value is not None},
        "config_kwargs": {
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"mode": "standard", "total_max_attempts": _TRIES},
            "max_pool_connections": MAX_REQUESTS,
            "s3": {"addressing_style": settings.addressing_style},
            "request_checksum_calculation": settings.checksums,
            "response_checksum_validation": settings.checksums,
        },
    }


def _close(client: Any) -> None:
    closing = asyncio.run_coroutine_threadsafe(client.close(), fsspec.asyn.get_loop())
    # The garbage collector may run this on the loop's own thread, where waiting would never end.
    if threading.current_thread() is not fsspec.asyn.iothread[0]:
        closing.result(_CLOSE_TIMEOUT_S)
