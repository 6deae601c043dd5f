"""Sends requests to one S3 bucket over libcurl, many at a time in the calling thread.

Knows requests, answers, retries and what went wrong; not trees or files. One `Transport` is used
by one thread at a time. Connections stay open between runs until `close`.
"""

import os
from collections.abc import Callable, Iterable

import pycurl

from trainjob.errors import StoreError
from trainjob.storage.curl.bucket import Bucket
from trainjob.storage.curl.flight import Done, Flight
from trainjob.storage.curl.handle import Handle
from trainjob.storage.curl.request import Again, Answer, Request
from trainjob.storage.curl.room import MAX_REQUESTS
from trainjob.storage.settings import StoreSettings

_KEPT_BYTES = 48 << 20  # as many as are under way at most


def nothing() -> None:
    """Do nothing while requests are under way."""


def no_fault(_: Answer) -> None:
    """Take every answer as it is."""


def _keep_freed_memory() -> None:
    """Have glibc keep the memory of the pieces that arrive, for those that come next.

    It gives every batch of them back to the kernel otherwise, and has each page cleared again. A
    block of its own that is freed raises the limit for what is kept to twice its size (mallopt(3)).
    """
    bytes(_KEPT_BYTES // 2)  # which touches no page of it, unlike a bytearray


class Transport:
    """Connections to the bucket `name`, which is reached as the settings say.

    Attributes:
        finds_checksums: Whether the store is to be asked to find checksums of what is sent in
            parts, until it shows that it does not.

    Raises:
        StoreError: If the bucket or the endpoint cannot be one; nothing is reached yet.
    """

    def __init__(self, name: str, settings: StoreSettings) -> None:
        self._bucket = Bucket(name, settings)
        self.finds_checksums = self.has_checksums
        self._multi: pycurl.CurlMulti | None = None
        self._idle: list[Handle] = []
        self._process = os.getpid()
        self._of_parent: list[object] = []

    def run(
        self, requests: Iterable[Request], done: Done, meanwhile: Callable[[], object] = nothing
    ) -> None:
        """Send all requests, many at a time, and give each answer to `done`.

        Sent again, with growing pauses: what broke off, stalled, or was answered by 408, 429 or
        5xx. Everything that is under way ends, without a connection left half used, when an error
        or an interruption leaves this method. Not to be called by `done`.

        Args:
            requests: Consumed as there is room: up to 64 requests, more if the store is far away
                (`Room`), and a budget of bytes (`Request.weight_bytes`); one is always sent.
            done: Called in this thread with every answer, in the order in which they come. What
                it returns is sent next, before the rest of `requests`, and consumed as slowly;
                `Again` counts as a try that broke off. What it raises ends all.
            meanwhile: Called in this thread once the first requests are on their way, for work that
                can be done while the store is at its own.

        Raises:
            StoreError: The first final failure, named with the url of its object.
            StoreUnavailable: If the deadline of the context is over.
        """
        self._leave_to_parent()
        if self._multi is None:
            _keep_freed_memory()
            self._multi = pycurl.CurlMulti()
            self._multi.setopt(pycurl.M_MAXCONNECTS, MAX_REQUESTS)
        try:
            with Flight(self._bucket, self._multi, self._idle, done) as flight:
                flight.send(requests, meanwhile)
        except StoreError:
            raise
        except BaseException:
            # A signal handler may have raised anywhere, so nothing is known of any connection.
            self.close()
            raise

    def ask(
        self,
        request: Request,
        meanwhile: Callable[[], object] = nothing,
        fault: Callable[[Answer], StoreError | None] = no_fault,
    ) -> Answer:
        """Send one request and return its answer; see `run`.

        Args:
            request: What to ask.
            meanwhile: As for `run`.
            fault: Says what is wrong with an answer, if anything; then it is asked for once more.
        """
        answers: list[Answer] = []

        def done(answer: Answer) -> Again | None:
            if (error := fault(answer)) is not None:
                return Again(error)
            answers.append(answer)
            return None

        self.run([request], done, meanwhile)
        return answers[0]

    @property
    def has_checksums(self) -> bool:
        """Whether the store is to be asked for the checksums that it keeps."""
        return self._bucket.has_checksums

    def url(self, key: str) -> str:
        """Return what messages call an object."""
        return self._bucket.url(key)

    def close(self) -> None:
        """Close the connections. A later request connects again."""
        self._leave_to_parent()
        # Forgotten first: nothing that is closed may be left here by an interruption.
        idle, self._idle, multi, self._multi = self._idle, [], self._multi, None
        for handle in idle:
            handle.close()
        if multi is not None:
            multi.close()

    def _leave_to_parent(self) -> None:
        """Forget the connections of the process that this one was forked from.

        They are not closed: over TLS that would tell the store, and so the parent, goodbye.
        """
        if self._process != os.getpid():
            self._of_parent.extend([self._multi, *self._idle])
            self._multi, self._idle = None, []
            self._process = os.getpid()
