"""What is tried again over libcurl, and what a store that refuses means."""

import threading
import time
from collections.abc import Callable

import pytest

from tests.core.storage.engines import shorten_pauses
from tests.core.storage.scripted_store import Asked, Reply, error
from tests.waiting import PATIENCE_S
from trainjob.errors import (
    CorruptData,
    StoreDenied,
    StoreError,
    StoreNotFound,
    StoreUnavailable,
    TreeChanged,
)
from trainjob.storage.curl import chain, flight, retry, room
from trainjob.storage.curl.request import Request
from trainjob.storage.curl.transport import Transport
from trainjob.storage.settings import StoreSettings


@pytest.fixture(autouse=True)
def quick_tries(monkeypatch):
    shorten_pauses(monkeypatch)


def test_a_pause_that_the_store_asks_for_is_kept(transport, replies):
    replies[:] = [error(503, "SlowDown", Retry_After="1")]
    begun = time.monotonic()

    transport.ask(Request("GET", "k"))

    assert time.monotonic() - begun >= 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_status_that_passes_is_tried_again(transport, replies, scripted, status):
    replies[:] = [Reply(status), Reply(status), Reply(200, b"data")]

    answer = transport.ask(Request("GET", "k"))

    assert (answer.body, len(scripted.asked)) == (b"data", 3)


@pytest.mark.parametrize("status", [429, 503])
def test_a_store_that_serves_only_some_at_a_time_is_asked_until_all_are_served(
    transport, replies, monkeypatch, status
):
    """As those with a limit of requests a second: it refuses each one again and again."""
    monkeypatch.setattr(room, "FIRST_REQUESTS", 4)
    done: list[str] = []
    replies[:] = [Reply(200 if number % 10 == 0 else status) for number in range(2000)]

    transport.run(
        (Request("GET", str(number)) for number in range(40)),
        lambda answer: done.append(answer.request.key),
    )

    assert sorted(done, key=int) == [str(number) for number in range(40)]


def test_a_request_that_alone_is_refused_is_given_up(transport, replies, scripted, monkeypatch):
    monkeypatch.setattr(flight, "_SERVES_S", 0.1)
    replies[:] = [Reply(200), *[Reply(503)] * 2000]

    with pytest.raises(StoreUnavailable, match="cannot answer now"):
        transport.run([Request("GET", "a"), Request("GET", "b")], lambda _: None)

    assert len(scripted.asked) >= 1 + retry.TRIES


@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 412, 416])
def test_another_refusal_is_final(transport, replies, scripted, status):
    replies[:] = [Reply(status)] * 9

    with pytest.raises(StoreError) as caught:
        transport.ask(Request("GET", "k"))

    assert str(caught.value).startswith("s3://b/k: ")
    assert len(scripted.asked) == 1


@pytest.mark.parametrize(
    ("reply", "kind", "text"),
    [
        (error(403, "RequestTimeTooSkewed"), StoreDenied, "set the clock of this machine"),
        (error(400, "ExpiredToken"), StoreDenied, "get new temporary credentials"),
        (error(403, "SecurityTokenExpired"), StoreDenied, "get new temporary credentials"),
        (error(403, "AccessDenied"), StoreDenied, r"not allowed to do this \(GetObject: Acc"),
        (error(403, "SignatureDoesNotMatch"), StoreDenied, "refuses these credentials"),
        (
            error(403, "InvalidSecurity"),
            StoreDenied,
            r"these credentials \(InvalidSecurity\); check",
        ),
        (Reply(403), StoreDenied, r"refuses these credentials \(403\); check the access key"),
        (error(401, "Odd"), StoreDenied, "refuses these credentials"),
        (
            error(403, "InvalidObjectState"),
            StoreDenied,
            r"the object is archived \(InvalidObjectState\); restore it in the store",
        ),
        (
            error(403, "KMS.DisabledException"),
            StoreDenied,
            r"refuses the request \(KMS.DisabledException\); look up what the store means by it",
        ),
        (error(403, "QuotaExceeded"), StoreDenied, r"the request \(QuotaExceeded\); look up"),
        (error(404, "NoSuchBucket"), StoreNotFound, "no bucket of that name"),
        (error(404, "NoSuchKey"), StoreNotFound, "no such object; check the url"),
        (error(412, "PreconditionFailed"), TreeChanged, "changed while it was copied"),
        (error(416, "InvalidRange"), TreeChanged, "changed while it was copied; run again"),
        (error(400, "InvalidPart"), CorruptData, "received other bytes than were sent"),
        (error(403, "SecondLevelDomainForbidden"), StoreError, "addressing_style to virtual"),
        (
            error(400, "AuthorizationHeaderMalformed", "<Region>eu-west-3</Region>"),
            StoreError,
            "the bucket is in the region 'eu-west-3' .* set this region",
        ),
        (
            error(301, "PermanentRedirect", x_amz_bucket_region="eu-west-3"),
            StoreError,
            "the bucket is in the region 'eu-west-3'",
        ),
        (Reply(307), StoreError, "the bucket is in another place"),
        (
            Reply(400, b"Client sent an HTTP request to an HTTPS server."),
            StoreError,
            r"no S3 store, or a proxy before it \(400\); check .* https://",
        ),
        (Reply(302, b"<html>Log in</html>"), StoreError, r"no S3 store, .* \(302\)"),
        (error(400, "Odd", "<Message>;\n</Message>"), StoreError, r"refuses the request \(Odd: no"),
    ],
)
def test_a_refusal_says_what_to_do(transport, replies, reply, kind, text):
    replies[:] = [reply] * 9

    with pytest.raises(kind, match=text) as caught:
        transport.ask(Request("GET", "k"))

    assert not caught.value.retryable or kind in (TreeChanged, CorruptData)


def test_an_error_in_a_good_answer_is_none(transport, replies, scripted):
    replies[:] = [error(200, "InternalError"), Reply(200, b"<CompleteMultipartUploadResult/>")]

    answer = transport.ask(Request("POST", "k", query={"uploadId": "1"}, body=b"<x/>"))

    assert b"Result" in answer.body
    assert len(scripted.asked) == 2


@pytest.fixture
def write_key(monkeypatch, tmp_path) -> Callable[[str], None]:
    """Puts another access key where botocore's chain finds it."""
    config = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(config))

    def write(name: str) -> None:
        new = tmp_path / f"{threading.get_ident()}"
        new.write_text(f"[default]\naws_access_key_id={name}\naws_secret_access_key=s\n")
        new.replace(config)

    return write


def is_new(asked: Asked) -> bool:
    """Say whether the key `new` signed the request."""
    return "Credential=new/" in asked.headers["Authorization"]


@pytest.mark.parametrize(
    "refusal",
    [
        error(400, "ExpiredToken"),
        error(403, "SecurityTokenExpired"),
        error(403, "InvalidAccessKeyId"),
        error(403, "InvalidTokenId"),
    ],
)
def test_new_keys_are_taken_when_the_store_says_that_the_old_ones_are_over(
    scripted, write_key, refusal: Reply
):
    def reply(asked: Asked) -> Reply:
        if is_new(asked):
            return Reply()
        write_key("new")
        return refusal

    write_key("old")
    scripted.reply = reply
    transport = Transport("b", StoreSettings(endpoint_url=scripted.endpoint_url))

    transport.run((Request("GET", str(n)) for n in range(8)), lambda _: None)
    transport.close()

    assert sum(map(is_new, scripted.asked)) == 8


def test_new_keys_are_looked_for_once_however_many_requests_had_the_old_ones(
    scripted, write_key, monkeypatch
):
    num_requests, num_lookups, find = 32, [0], chain.credentials
    all_are_there = threading.Barrier(num_requests)

    def look_up() -> object:
        num_lookups[0] += 1
        return find()

    def reply(asked: Asked) -> Reply:
        if is_new(asked):
            return Reply()
        all_are_there.wait(PATIENCE_S)
        write_key("new")
        return error(400, "ExpiredToken")

    write_key("old")
    scripted.reply = reply
    monkeypatch.setattr(chain, "credentials", look_up)
    transport = Transport("b", StoreSettings(endpoint_url=scripted.endpoint_url))

    transport.run((Request("GET", str(n)) for n in range(num_requests)), lambda _: None)
    transport.close()

    assert num_lookups == [2]


def test_a_later_try_with_the_old_keys_is_sent_again_with_those_another_request_found(
    scripted, write_key
):
    num_tries, is_tried_again, is_renewed = [0], threading.Event(), threading.Event()

    def reply(asked: Asked) -> Reply:
        if is_new(asked):
            is_renewed.set()
            return Reply()
        if asked.path.endswith("/finds"):
            assert is_tried_again.wait(PATIENCE_S)
            write_key("new")
            return error(400, "ExpiredToken")
        num_tries[0] += 1
        if num_tries == [1]:
            return error(503, "SlowDown")
        is_tried_again.set()
        assert is_renewed.wait(PATIENCE_S)
        return error(400, "ExpiredToken")

    write_key("old")
    scripted.reply = reply
    transport = Transport("b", StoreSettings(endpoint_url=scripted.endpoint_url))

    transport.run([Request("GET", "again"), Request("GET", "finds")], lambda _: None)
    transport.close()

    assert num_tries == [2]
    assert sum(map(is_new, scripted.asked)) == 2


def test_without_keys_nothing_is_signed_and_a_refusal_asks_for_them(scripted, replies):
    transport = Transport("b", StoreSettings(endpoint_url=scripted.endpoint_url))
    transport.ask(Request("GET", "public"))
    replies[:] = [error(403, "AccessDenied")]

    with pytest.raises(StoreDenied, match="no complete credentials for the store"):
        transport.ask(Request("GET", "private"))
    transport.close()

    assert all("Authorization" not in asked.headers for asked in scripted.asked)


def test_pauses_grow_and_vary(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 1)

    pauses = [{retry.pause_s(tries) for _ in range(20)} for tries in (1, 2, 3, 20)]

    assert all(len(some) > 1 for some in pauses[:3])
    assert [max(some) <= 2**n for n, some in enumerate(pauses[:3])] == [True] * 3
    assert max(pauses[3]) == retry.pause_s(1, "999") == 30
    assert retry.pause_s(1, "Wed, 21 Oct 2026 07:28:00 GMT") <= 1
