"""Many requests at once over libcurl: order, room, tries, refusals, stops, forks, and no leaks."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import pytest

from tests.core.storage.engines import shorten_pauses
from tests.core.storage.scripted_store import Asked, Reply, error
from tests.interruptions import Stop, stopped_everywhere
from tests.s3_faults import fault_proxy
from trainjob.errors import (
    StoreError,
    StoreUnavailable,
    TreeChanged,
)
from trainjob.storage.curl import flight, retry, room
from trainjob.storage.curl import transport as transport_module
from trainjob.storage.curl.bucket import Bucket
from trainjob.storage.curl.request import Answer, FilePart, Request
from trainjob.storage.curl.transport import Transport
from trainjob.storage.deadline import Deadline, ending_at
from trainjob.storage.settings import StoreSettings


@pytest.fixture(autouse=True)
def quick_tries(monkeypatch):
    shorten_pauses(monkeypatch)


def connections_to(port: int) -> int:
    """Return how many connections this process has to `port`, whoever answers there."""
    found = 0
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            with socket.socket(fileno=os.dup(int(name))) as connection:
                found += connection.getpeername()[1] == port
        except (OSError, IndexError):  # no socket, not connected, or closed by another thread
            continue
    return found


def test_connections_are_used_again(transport, scripted):
    for number in range(5):
        transport.ask(Request("GET", str(number)))

    assert scripted.num_connections == 1


def test_no_more_requests_are_under_way_than_there_is_room_for(transport, scripted, monkeypatch):
    monkeypatch.setattr(room, "FIRST_REQUESTS", 3)
    consumed, answered, most = [0], [0], [0]

    def requests() -> Iterator[Request]:
        for number in range(20):
            consumed[0] += 1
            most[0] = max(most[0], consumed[0] - answered[0])
            yield Request("GET", str(number))

    def done(_: object) -> None:
        answered[0] += 1

    transport.run(requests(), done)

    assert answered == [20]
    assert most[0] <= 4  # one waits for its turn
    assert scripted.num_connections <= 3


@pytest.mark.parametrize("limit", ["requests", "bytes"])
def test_who_waits_for_room_to_try_again_burns_no_processor_time(
    transport, scripted, monkeypatch, limit
):
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(
        *((room, "FIRST_REQUESTS", 1) if limit == "requests" else (flight, "MAX_BYTES", 1))
    )
    refusals = [error(503, "SlowDown")]

    def reply(asked: Asked) -> Reply:
        if asked.path.endswith("/refused"):
            return refusals.pop() if refusals else Reply(200)
        threading.Event().wait(0.5)  # far longer than the pause after the refusal
        return Reply(200)

    scripted.reply = reply
    used_s = time.thread_time()

    transport.run(
        [Request("GET", key, weight_bytes=1) for key in ("refused", "slow", "last")], lambda _: None
    )

    assert time.thread_time() - used_s < 0.2


def test_large_requests_go_one_by_one_when_the_budget_says_so(transport, scripted):
    under_way, most = [0], [0]
    lock = threading.Lock()

    def reply(_: Asked) -> Reply:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        time.sleep(0.01)  # so that others could come meanwhile
        with lock:
            under_way[0] -= 1
        return Reply()

    scripted.reply = reply
    big = flight.MAX_BYTES + 1

    transport.run((Request("GET", f"{n}", weight_bytes=big) for n in range(4)), lambda _: None)

    assert most == [1]


def test_what_an_answer_leads_to_goes_before_the_rest(transport, scripted, monkeypatch):
    monkeypatch.setattr(room, "FIRST_REQUESTS", 1)

    def done(answer):
        return (
            [Request("PUT", f"{answer.request.key}/part", body=b"1")]
            if answer.request.tag
            else None
        )

    transport.run((Request("POST", name, tag=True) for name in "ab"), done)

    assert [(asked.method, asked.path) for asked in scripted.asked] == [
        ("POST", "/b/a"),
        ("PUT", "/b/a/part"),
        ("POST", "/b/b"),
        ("PUT", "/b/b/part"),
    ]


def test_a_body_from_a_file_is_sent_again_from_its_place(transport, replies, scripted, tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    replies[:] = [Reply(503)]

    transport.ask(Request("PUT", "k", body=FilePart(tmp_path / "file", 3, 4)))

    assert [asked.body for asked in scripted.asked] == [b"3456", b"3456"]


def test_a_file_that_became_shorter_is_told(transport, tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")

    with pytest.raises(TreeChanged, match=f"{tmp_path}/file: the file changed"):
        transport.ask(Request("PUT", "k", body=FilePart(tmp_path / "file", 3, 20)))


def test_a_sink_gets_the_body_of_good_answers_only_and_begins_anew(transport, replies):
    replies[:] = [error(503, "SlowDown"), Reply(200, b"data")]
    begun: list[list[bytes]] = []

    def begin():
        begun.append([])
        return begun[-1].extend

    answer = transport.ask(Request("GET", "k", sink=begin))

    assert [b"".join(pieces) for pieces in begun] == [b"", b"data"]
    assert answer.pieces == []


def test_an_error_of_the_caller_ends_all_and_leaves_no_connection(transport, scripted):
    def fail(_: object) -> None:
        raise StoreError("stop")

    with pytest.raises(StoreError, match="stop"):
        transport.run((Request("GET", str(n)) for n in range(1_000)), fail)
    transport.close()

    assert len(scripted.asked) < 200
    assert connections_to(scripted.server_port) == 0


def test_a_store_that_is_away_is_named_after_some_tries(monkeypatch):
    settings = StoreSettings(endpoint_url="http://user:wr0ng@127.0.0.1:1", access_key=None)

    with pytest.raises(StoreUnavailable, match="no whole answer from the store at ") as caught:
        Transport("b", settings).ask(Request("GET", "k"))

    assert "wr0ng" not in str(caught.value)
    assert caught.value.retryable


def test_a_deadline_ends_a_request_that_waits(s3, shared_bucket):
    s3.put(shared_bucket, "waits", b"1" * 100_000)
    begun = time.monotonic()

    with fault_proxy(s3.port, lambda *_: "hang") as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        transport = Transport(shared_bucket, settings)
        with (
            ending_at(Deadline(0.3)),
            pytest.raises(StoreUnavailable, match="waits: not finished in the time"),
        ):
            transport.ask(Request("GET", "waits"))
        transport.close()

    assert time.monotonic() - begun < 45  # one that stalls ends after 60 s


def test_a_stop_in_the_middle_of_bodies_is_never_lost(s3, shared_bucket):
    """Signals come while bodies arrive, again and again; each ends the run it hits."""
    s3.put(shared_bucket, "large", b"x" * (24 << 20))
    transport = Transport(shared_bucket, s3.settings)
    endless = repeat(Request("GET", "large", sink=lambda: lambda pieces: None))

    def stop(*_: object) -> None:
        raise Stop

    def run_and_stop(timer: threading.Timer) -> None:
        timer.start()
        transport.run(endless, lambda _: None)

    signal.signal(signal.SIGUSR1, stop)
    try:
        for delay in (0.01, 0.03, 0.05, 0.08):
            timer = threading.Timer(delay, signal.raise_signal, [signal.SIGUSR1])
            with pytest.raises(Stop):
                run_and_stop(timer)
            timer.join()
        transport.ask(Request("GET", "large"))
    finally:
        # Not the default: a timer of a test that failed would end this process.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        transport.close()


@pytest.mark.parametrize("names", [(), ("_take",)])
def test_a_stop_between_two_lines_is_what_is_raised_and_the_next_request_works(scripted, names):
    def ask(transport: Transport) -> Answer:
        return transport.ask(Request("GET", "k"))

    for transport in stopped_everywhere(
        lambda: Transport("b", scripted.settings), ask, flight, *names
    ):
        assert ask(transport).is_ok
        transport.close()


def test_a_transport_whose_closing_was_stopped_connects_again(scripted):
    def connected() -> Transport:
        transport = Transport("b", scripted.settings)
        transport.ask(Request("GET", "first"))
        return transport

    for transport in stopped_everywhere(connected, Transport.close, transport_module, "close"):
        assert transport.ask(Request("GET", "next")).is_ok
        transport.close()


def test_a_child_does_not_touch_the_connections_of_its_parent(transport, scripted):
    transport.ask(Request("GET", "parent"))
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if transport.ask(Request("GET", "child")).is_ok else 2
            transport.close()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)

    transport.ask(Request("GET", "parent again"))

    assert os.waitstatus_to_exitcode(status) == 0
    assert [asked.path for asked in scripted.asked] == [
        "/b/parent",
        "/b/child",
        "/b/parent%20again",
    ]
    assert scripted.num_connections == 2


def test_a_file_for_a_body_is_closed_again(transport, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"1")

    transport.ask(Request("PUT", "k", body=FilePart(file, 0, 1)))

    opened = [link for link in Path("/proc/self/fd").iterdir() if link.exists()]
    assert file not in [link.resolve() for link in opened]


@pytest.mark.parametrize(
    ("endpoint", "moves"), [(None, True), ("https://s3.eu-west-1.amazonaws.com", False)]
)
def test_another_region_is_asked_unless_somebody_named_the_endpoint(endpoint, moves):
    bucket = Bucket("bkt", StoreSettings(endpoint_url=endpoint, region="eu-west-1"))

    assert bucket.move_to("eu-west-3") is moves
    assert bucket.endpoint == f"https://s3.eu-west-{3 if moves else 1}.amazonaws.com"
