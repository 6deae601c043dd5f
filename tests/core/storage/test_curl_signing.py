"""The signature of requests, compared with botocore's, and where the keys for it come from."""

import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials

from tests.core.storage.conftest import NASTY_NAMES
from tests.interruptions import stopped_everywhere
from trainjob.errors import StoreDenied
from trainjob.storage.curl import credentials
from trainjob.storage.curl.credentials import Credentials
from trainjob.storage.curl.keys import Keys
from trainjob.storage.curl.request import Request
from trainjob.storage.curl.signing import EMPTY_SHA256, UNSIGNED, Signer, encode_path, encode_query
from trainjob.storage.curl.transport import Transport
from trainjob.storage.settings import StoreSettings

HOST = "127.0.0.1:8333"
KEYS = StoreSettings(access_key="key", secret_key="secret")
TEMPORARY = replace(KEYS, session_token="tok/en+=")


def signer(settings: StoreSettings = KEYS) -> Signer:
    return Signer(Credentials(settings, "s3://b/"), "eu-west-3", HOST)


def fields(lines: list[str]) -> dict[str, str]:
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


def signature_of_botocore(method: str, path: str, query: str, sent: dict[str, str]) -> str:
    """Return the Authorization that botocore makes for a request with the same fields."""
    own = {name: value for name, value in sent.items() if name != "authorization"}
    url = f"http://{HOST}{path}{'?' if query else ''}{query}"
    request = AWSRequest(method, url, headers={**own, "host": HOST})
    request.context["timestamp"] = sent["x-amz-date"]
    auth = S3SigV4Auth(BotocoreCredentials("key", "secret"), "s3", "eu-west-3")
    auth._inject_signature_to_request(
        request,
        auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request),
    )
    return str(request.headers["Authorization"])


@pytest.mark.parametrize("settings", [KEYS, TEMPORARY])
@pytest.mark.parametrize(
    ("method", "query", "headers", "sha256"),
    [
        ("GET", {}, {"if-match": '"etag"', "range": "bytes=0-7"}, EMPTY_SHA256),
        ("GET", {"prefix": "a b/+%&?#数", "prefix-x": "", "list-type": "2"}, {}, EMPTY_SHA256),
        ("PUT", {"partNumber": "2", "uploadId": "a/b+c="}, {"content-md5": "ab=="}, UNSIGNED),
        ("POST", {"uploads": ""}, {"content-type": "application/octet-stream"}, "00" * 32),
    ],
)
@pytest.mark.parametrize("key", [*NASTY_NAMES, "a/../b", "a//b", "~user/-_.x"])
def test_a_signature_is_that_of_botocore(settings, method, query, headers, sha256, key):
    path, text = f"/bucket/{encode_path(key)}", encode_query(query)

    sent = fields(signer(settings).sign(method, path, text, headers, sha256))

    assert sent["authorization"] == signature_of_botocore(method, path, text, sent)
    assert "host" not in sent
    assert sent.get("x-amz-security-token") == ("tok/en+=" if settings is TEMPORARY else None)


def test_a_day_that_ends_gives_another_key(monkeypatch):
    moment = datetime(2030, 1, 31, 23, 59, 59, tzinfo=UTC).timestamp()
    ours = signer()
    before = fields(ours.sign("GET", "/b/k", "", {}, EMPTY_SHA256))
    monkeypatch.setattr(time, "time", lambda: moment)
    ours.sign("GET", "/b/k", "", {}, EMPTY_SHA256)
    monkeypatch.setattr(time, "time", lambda: moment + 1)

    after = fields(ours.sign("GET", "/b/k", "", {}, EMPTY_SHA256))

    assert after["x-amz-date"] == "20300201T000000Z" != before["x-amz-date"]
    assert after["authorization"] == signature_of_botocore("GET", "/b/k", "", after)


def test_a_signature_is_right_wherever_the_last_one_was_broken_off(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)

    def sign(ours: Signer) -> list[str]:
        return ours.sign("GET", "/b/k", "", {}, EMPTY_SHA256)

    found = [sign(ours) for ours in stopped_everywhere(signer, sign)]

    assert len(found) > 10
    assert found == [sign(signer())] * len(found)


def test_keys_that_could_not_be_had_are_asked_for_again(monkeypatch):
    answers: list[StoreDenied | Keys] = [StoreDenied("not now"), Keys("key", "secret", None)]

    def keys(_: Credentials) -> Keys:
        answer = answers.pop(0)
        if isinstance(answer, StoreDenied):
            raise answer
        return answer

    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    monkeypatch.setattr(Credentials, "keys", keys)
    ours = signer()
    with pytest.raises(StoreDenied):
        ours.sign("GET", "/b/k", "", {}, EMPTY_SHA256)

    assert "authorization" in fields(ours.sign("GET", "/b/k", "", {}, EMPTY_SHA256))


def test_nothing_is_signed_without_keys():
    ours = signer(StoreSettings())

    assert ours.is_anonymous
    assert ours.sign("GET", "/b/k", "", {"range": "bytes=0-1"}, EMPTY_SHA256) == [
        "range: bytes=0-1"
    ]


@pytest.mark.parametrize("half", [{"access_key": "key"}, {"secret_key": "wr0ng"}])
def test_half_of_the_keys_is_refused(half):
    with pytest.raises(StoreDenied, match="s3://b/: no complete credentials") as caught:
        Credentials(StoreSettings(**half), "s3://b/").keys()

    assert "wr0ng" not in str(caught.value)


def test_secrets_are_not_shown():
    keys = Credentials(TEMPORARY, "s3://b/").keys()

    assert repr(keys) == "Keys('key')"


@pytest.fixture
def key_giver(tmp_path, monkeypatch):
    """A program that gives other temporary keys each time, as botocore's configuration names it."""
    program = tmp_path / "give.py"
    program.write_text(
        "import json, pathlib, sys\n"
        "count = pathlib.Path(sys.argv[1], 'count')\n"
        "number = int(count.read_text()) + 1 if count.exists() else 1\n"
        "count.write_text(str(number))\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': f'key-{number}', 'SecretAccessKey': 's',\n"
        "    'SessionToken': 't', 'Expiration': sys.argv[2]}))\n"
    )

    def give(lives: timedelta) -> None:
        end = (datetime.now(UTC) + lives).isoformat()
        config = tmp_path / "config"
        config.write_text(
            f"[default]\ncredential_process = {sys.executable} {program} {tmp_path} {end}\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))

    return give


def test_keys_of_the_chain_are_kept_while_they_live(key_giver):
    key_giver(timedelta(hours=6))
    chain = Credentials(StoreSettings(), "s3://b/")

    found = {chain.keys() for _ in range(3)}

    assert [str(keys) for keys in found] == ["Keys('key-1')"]


def test_keys_of_the_chain_are_renewed_before_they_end(key_giver, monkeypatch):
    key_giver(timedelta(minutes=2))
    monkeypatch.setattr(credentials, "_KEEP_S", 0)
    chain = Credentials(StoreSettings(), "s3://b/")

    found = [chain.keys() for _ in range(2)]

    assert found[0] != found[1]


def test_a_real_store_accepts_what_is_signed(s3, shared_bucket):
    transport = Transport(shared_bucket, s3.settings)

    for name in NASTY_NAMES:
        key = f"signed/{time.monotonic_ns()}/{name}"
        transport.ask(Request("PUT", key, body=name.encode()))
        assert transport.ask(Request("GET", key)).body == name.encode()
        assert s3.get(shared_bucket, key) == name.encode()
    transport.close()
