"""What a script that streams is given to reach the store by itself."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote_plus

import botocore.session
import pytest

from trainjob.storage.script_access import ACCESS_ENV, access_environment, secrets_of
from trainjob.storage.settings import StoreSettings

SETTINGS = StoreSettings(
    endpoint_url="http://127.0.0.1:9",
    region="cn-north-4",
    access_key="key-of-job",
    secret_key="secret-of-job",
    session_token="token-of-job",
    ca_bundle=Path("/etc/ca.pem"),
)


def test_an_s3_client_finds_all_of_it_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in access_environment(SETTINGS).items():
        monkeypatch.setenv(name, value)

    session = botocore.session.Session()
    client = session.create_client("s3")

    assert client.meta.endpoint_url == "http://127.0.0.1:9"
    assert client.meta.region_name == "cn-north-4"
    assert client.meta.config.request_checksum_calculation == "when_required"
    assert session.get_config_variable("ca_bundle") == "/etc/ca.pem"
    credentials = session.get_credentials()
    assert credentials is not None
    found = credentials.get_frozen_credentials()
    assert (found.access_key, found.secret_key, found.token) == (
        "key-of-job",
        "secret-of-job",
        "token-of-job",
    )


def test_it_is_what_a_job_may_not_set_itself() -> None:
    assert tuple(access_environment(SETTINGS)) == ACCESS_ENV


def test_what_the_settings_leave_out_is_not_given() -> None:
    settings = StoreSettings(access_key="k", secret_key="s")

    assert access_environment(settings).keys() == {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_REQUEST_CHECKSUM_CALCULATION",
        "AWS_RESPONSE_CHECKSUM_VALIDATION",
    }


def test_without_a_key_the_script_looks_where_this_process_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the worker alone")

    environment = access_environment(StoreSettings(region="r"))

    assert environment["AWS_PROFILE"] == "lab"
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    assert "AWS_PROFILE" not in access_environment(SETTINGS)


def test_the_secrets_of_settings() -> None:
    assert secrets_of(SETTINGS) == ["secret-of-job", "token-of-job"]
    assert secrets_of(StoreSettings()) == []


def test_secrets_are_also_hidden_as_urls_and_logs_have_them() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQ/IBADANBg\n}"

    hidden = secrets_of(StoreSettings(secret_key="a/b+c"), [key])

    assert {"a/b+c", "a/b%2Bc", "a%2Fb%2Bc"} <= set(hidden)
    assert {key, "-----BEGIN KEY-----", "MIIEvQ/IBADANBg"} <= set(hidden)
    assert "}" not in hidden


@pytest.mark.parametrize(
    "write",
    [
        repr,
        ascii,
        json.dumps,
        partial(json.dumps, ensure_ascii=False),
        lambda secret: json.dumps(f"cannot log in with {{'KEY': {secret!r}}}"),
        lambda secret: json.dumps({"KEY": json.dumps(secret)}),
        quote_plus,
        str.strip,
    ],
    ids=["repr", "ascii", "json", "json-utf8", "json-of-repr", "json-of-json", "form", "stripped"],
)
@pytest.mark.parametrize(
    "secret",
    [
        'pass"word\\1',
        'it\'s a "word"',
        "schlüssel-雪",
        "from-a-file\n",
        'one line-1\nand"line-2\n',
    ],
    ids=["quote", "quotes", "unicode", "pasted", "lines"],
)
def test_secrets_are_also_hidden_as_python_and_json_write_them(
    write: Callable[[str], str], secret: str
) -> None:
    text = write(secret)

    for form in sorted(secrets_of(StoreSettings(), [secret]), key=len, reverse=True):
        text = text.replace(form, "***")

    assert "word" not in text
    assert "schl" not in text
    assert "file" not in text
    assert "line" not in text
