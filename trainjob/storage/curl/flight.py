"""The requests that are under way at one time: one loop over libcurl's multi handle."""

import heapq
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Self

import pycurl

from trainjob.errors import StoreError
from trainjob.storage import refusals
from trainjob.storage.curl import retry
from trainjob.storage.curl.bucket import Bucket
from trainjob.storage.curl.error_answer import is_error_in_good_answer, refusal_of
from trainjob.storage.curl.handle import Handle
from trainjob.storage.curl.keys import Keys
from trainjob.storage.curl.request import Again, Answer, FilePart, Request
from trainjob.storage.curl.room import Room
from trainjob.storage.deadline import check_deadline, has_deadline
from trainjob.storage.local_tree import changed
from trainjob.storage.pace import Pace

Done = Callable[[Answer], Iterable[Request] | Again | None]
"""Takes an answer; what it returns is sent next. `Again`: the same request."""

MAX_BYTES = 48 << 20
"""Budget for the bytes of the requests that are under way together."""

_LONGEST_WAIT_S = 0.2  # how long a deadline or a stop may go unnoticed
_NOTHING_TO_WAIT_FOR_S = 0.01
_LOOK_AT_PACE_S = 1.0
_SERVES_S = 5.0  # longer than the pauses between tries


class Flight:
    """Sends requests; a context manager that breaks off what is under way when it is left.

    Args:
        bucket: Where they go.
        multi: Keeps the connections.
        idle: Handles that are free. Those of this flight come from there and go back there.
        done: Takes the answers.
    """

    def __init__(
        self, bucket: Bucket, multi: pycurl.CurlMulti, idle: list[Handle], done: Done
    ) -> None:
        self._bucket = bucket
        self._multi = multi
        self._idle = idle
        self._done = done
        self._active: dict[pycurl.Curl, Handle] = {}
        self._active_bytes = 0
        self._with_sink: dict[pycurl.Curl, Handle] = {}
        self._sources: list[Iterator[Request]] = []
        self._later: list[tuple[float, int, Request, int]] = []
        self._order = count()
        self._held: tuple[Request, int] | None = None
        self._latest = Request("GET", "")
        self._room = Room()
        self._pace = Pace()
        self._next_look_s = _LOOK_AT_PACE_S
        self._last_good_s = float("-inf")

    def __enter__(self) -> Self:
        """Return the flight itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close what is still under way; its connections are in the middle of something."""
        for curl, handle in self._active.items():
            self._multi.remove_handle(curl)
            handle.close()
        self._active.clear()

    def send(self, requests: Iterable[Request], meanwhile: Callable[[], object]) -> None:
        """Send all `requests` and what the answers lead to; see `Transport.run`."""
        self._sources.append(iter(requests))
        is_under_way = False
        while self._fill():
            while self._multi.perform()[0] == pycurl.E_CALL_MULTI_PERFORM:
                pass
            if not is_under_way:
                is_under_way = True
                meanwhile()
            for handle in self._with_sink.values():
                handle.drain()
            if not self._reap():
                self._wait()
            self._pace.go_on(len(self._active))
            if self._pace.seconds >= self._next_look_s:
                self._leave_slow()
            if has_deadline():
                check_deadline(self._url(self._latest))

    def _fill(self) -> bool:
        """Start what there is room for; say whether there is anything left to wait for."""
        while len(self._active) < self._room.limit and (found := self._held or self._next()):
            self._held = found
            weight = found[0].weight_bytes
            if self._active and self._active_bytes + weight > MAX_BYTES:
                break
            self._held = None
            self._start(*found)
        return bool(self._active or self._later)

    def _next(self) -> tuple[Request, int] | None:
        """Return what is to be sent now, and how often it was: what is tried again goes first."""
        if self._later and self._later[0][0] <= time.monotonic():
            return heapq.heappop(self._later)[2:]
        while self._sources:
            request = next(self._sources[-1], None)
            if request is not None:
                return request, 0
            self._sources.pop()
        return None

    def _start(self, request: Request, tries: int) -> None:
        handle = self._idle.pop() if self._idle else self._bucket.new_handle()
        try:
            self._bucket.prepare(handle, request, tries + 1)
            self._multi.add_handle(handle.curl)
        except BaseException:
            handle.close()
            raise
        self._active[handle.curl] = handle
        self._latest = request
        self._active_bytes += request.weight_bytes
        if request.sink is not None:
            self._with_sink[handle.curl] = handle

    def _reap(self) -> bool:
        """Take what has ended; say whether there was anything."""
        any_ended = False
        left = 1
        while left:
            left, well, badly = self._multi.info_read()
            for curl in well:
                self._answered(*self._take(curl))
            for curl, code, text in badly:
                answer, tries, _ = self._take(curl)
                self._broke(answer.request, tries, code, text)
            any_ended = any_ended or bool(well or badly)
        return any_ended

    def _leave_slow(self) -> None:
        """Break off what would hardly end, to be tried again."""
        self._next_look_s = self._pace.seconds + _LOOK_AT_PACE_S
        slow = [curl for curl, handle in self._active.items() if handle.is_too_slow(self._pace)]
        for curl in slow:
            answer, tries, _ = self._take(curl)
            self._broke(answer.request, tries, pycurl.E_OPERATION_TIMEDOUT, "it came too slowly")

    def _take(self, curl: pycurl.Curl) -> tuple[Answer, int, Keys | None]:
        """Free the handle; return what it brought, at which try, and what had signed that."""
        handle = self._active[curl]
        request = handle.request
        assert request is not None  # noqa: S101 - that of a handle that is active
        handle.drain()
        # First, so that nothing is removed twice if a signal handler raises in between.
        del self._active[curl]
        self._multi.remove_handle(curl)
        self._with_sink.pop(curl, None)
        self._active_bytes -= request.weight_bytes
        answer = Answer(request, handle.status, handle.head, handle.pieces)
        tries = handle.tries
        handle.finish()
        self._idle.append(handle)
        return answer, tries, handle.keys

    def _answered(self, answer: Answer, tries: int, keys: Keys | None) -> None:
        if _is_wanted(answer):
            self._last_good_s = time.monotonic()
            more = self._done(answer)
            if isinstance(more, Again):
                if tries >= retry.TRIES:
                    raise more.error
                self._try_again(answer.request, tries, retry.pause_s(tries))
            elif more is not None:
                self._sources.append(iter(more))
        elif (pause_s := self._pause_after(answer, tries, keys)) is not None:
            self._try_again(answer.request, tries, pause_s)
        else:
            raise self._refused(answer)

    def _pause_after(self, answer: Answer, tries: int, keys: Keys | None) -> float | None:
        """Return how long to wait before the next try; None if it would not help."""
        refusal = refusal_of(answer)
        # A store that lets so many requests a second through has others refused again and again.
        if tries >= retry.TRIES and not (answer.status in retry.BUSY and self._is_served):
            return None
        if refusal.code in refusals.MAY_BE_OVER:
            return 0 if self._bucket.renew_keys(keys) else None
        if refusal.other_region:
            return 0 if self._bucket.move_to(refusal.other_region) else None
        if refusal.may_pass or answer.is_ok:
            if answer.status in retry.BUSY:
                self._room.note_busy()
            return retry.pause_s(min(tries, retry.TRIES), answer.header("retry-after"))
        return None

    @property
    def _is_served(self) -> bool:
        """Whether the store did of late what it was asked."""
        return time.monotonic() - self._last_good_s < _SERVES_S

    def _refused(self, answer: Answer) -> StoreError:
        url = self._url(answer.request)
        if answer.status in (401, 403) and self._bucket.is_anonymous:
            return refusals.no_credentials(url)
        return refusals.refused(refusal_of(answer), url)

    def _broke(self, request: Request, tries: int, code: int, text: str) -> None:
        """Try again what got no whole answer, or say why not."""
        url = self._url(request)
        if isinstance(request.body, FilePart) and code == pycurl.E_READ_ERROR:
            raise changed(request.body.file)  # it became shorter
        if retry.is_not_trusted(code):
            raise refusals.not_trusted(url, text)
        if code == retry.NO_CERTIFICATES:
            raise refusals.no_certificates(url, text)
        if not retry.may_pass(code):
            raise refusals.impossible(url, text)
        if tries >= retry.TRIES:
            raise refusals.unreachable(url, self._bucket.endpoint, text)
        self._try_again(request, tries, retry.pause_s(tries))

    def _try_again(self, request: Request, tries: int, pause_s: float) -> None:
        due = time.monotonic() + pause_s
        heapq.heappush(self._later, (due, next(self._order), request, tries))

    def _wait(self) -> None:
        """Wait until something moves, a try is due, or a while is over."""
        wait_s = _LONGEST_WAIT_S
        # What is due and has no room is sent when something ends.
        if self._later and self._held is None and len(self._active) < self._room.limit:
            wait_s = min(wait_s, max(self._later[0][0] - time.monotonic(), 0))
        if not self._active:
            time.sleep(wait_s)
            return
        begun = time.monotonic()
        if self._multi.select(wait_s) < 0:  # while a name is looked up there may be no socket
            time.sleep(min(wait_s, _NOTHING_TO_WAIT_FOR_S))
        self._room.note_wait(time.monotonic() - begun, len(self._active))

    def _url(self, request: Request) -> str:
        """Return what messages call the object, or the folder that is listed."""
        return self._bucket.url(request.key or request.query.get("prefix", ""))


def _is_wanted(answer: Answer) -> bool:
    """Say whether the caller takes an answer as it is."""
    if answer.is_ok:
        return not is_error_in_good_answer(answer)
    request = answer.request
    if answer.status in request.answers:
        return True
    return bool(request.refusals) and refusal_of(answer).code in request.refusals
