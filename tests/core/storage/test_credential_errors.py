"""Who cannot get at keys is told why, and whether a later try may help, whatever the engine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from trainjob.errors import StoreDenied, StoreError, StoreUnavailable
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import Store, open_store

_SSO = """[default]
sso_session = ours
sso_account_id = 123456789012
sso_role_name = reader
region = eu-west-3
[sso-session ours]
sso_region = eu-west-3
sso_start_url = https://ours.example/start
"""


@pytest.fixture
def refused(engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return what is said to somebody whose keys come from this configuration."""

    def refused(config: str) -> StoreError:
        (tmp_path / "config").write_text(config)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("HOME", str(tmp_path))
        settings = StoreSettings(endpoint_url="http://127.0.0.1:9", region="eu-west-3")
        with (
            open_store("s3://bucket/data", settings) as store,
            pytest.raises(StoreError) as caught,
        ):
            store.list_files()
        return caught.value

    return refused


def test_a_program_that_gives_no_keys_is_told_and_may_be_tried_again(refused, tmp_path):
    program = tmp_path / "give.sh"
    program.write_text("#!/bin/sh\necho 'the vault; is sealed' >&2\nexit 1\n")
    program.chmod(0o755)

    error = refused(f"[default]\ncredential_process = {program}\n")

    assert isinstance(error, StoreUnavailable)
    assert str(error).startswith("s3://bucket/")
    assert "custom-process: the vault, is sealed" in str(error)
    assert "credential_process" in str(error).rpartition("; ")[2]
    assert "AWS_ACCESS_KEY_ID" not in str(error)


@pytest.mark.parametrize(
    ("program", "found"),
    [("/no/such/program", "No such file"), ("/bin/echo surely-a-secret", "Expecting value")],
)
def test_a_program_that_can_give_no_keys_is_told_and_not_tried_again(refused, program, found):
    error = refused(f"[default]\ncredential_process = {program}\n")

    assert isinstance(error, StoreDenied)
    assert found in str(error)
    assert "surely-a-secret" not in str(error)


def test_a_single_sign_on_that_is_over_is_told_as_it_is(refused):
    error = refused(_SSO)

    assert isinstance(error, StoreDenied)
    assert "SSO" in str(error)
    assert "AWS_ACCESS_KEY_ID" not in str(error)


def test_half_of_the_keys_is_told_with_the_names_of_both(refused):
    error = refused("[default]\naws_access_key_id = key\n")

    assert isinstance(error, StoreDenied)
    assert "no complete credentials" in str(error)
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in str(error)


def test_keys_that_are_over_when_they_come_are_told_with_the_clock(refused, tmp_path):
    """As those of a program that keeps old ones, or all on a machine whose clock is ahead."""
    end = "2020-01-01T00:00:00Z"
    keys = {"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b", "Expiration": end}
    (tmp_path / "keys.json").write_text(json.dumps(keys))

    error = refused(f"[default]\ncredential_process = cat {tmp_path}/keys.json\n")

    assert isinstance(error, StoreDenied)
    assert str(error).startswith("s3://bucket/")
    assert "are over" in str(error)
    assert "the clock of this machine" in str(error).rpartition("; ")[2]


def test_keys_of_the_environment_that_are_over_are_told(refused, monkeypatch):
    """`aws configure export-credentials --format env` sets the end beside the keys."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2020-01-01T00:00:00Z")

    error = refused("")

    assert isinstance(error, StoreDenied)
    assert "are over" in str(error)


def test_a_program_that_says_json_of_another_form_is_told(refused):
    error = refused("[default]\ncredential_process = echo [1]\n")

    assert isinstance(error, StoreDenied)
    assert "the credentials cannot be had" in str(error)


@pytest.mark.parametrize("odd", ["key\n", "k\re\ny", "\u4f60\u7684AK", "key\u200b"])
@pytest.mark.parametrize(
    ("field", "name"), [("access_key", "access key"), ("session_token", "session token")]
)
@pytest.mark.usefixtures("engine")
def test_a_key_that_no_header_can_have_is_refused_by_name(field, name, odd):
    settings = StoreSettings(endpoint_url="http://127.0.0.1:9", access_key="k", secret_key="s")

    with pytest.raises(StoreDenied) as caught, _opened(replace(settings, **{field: odd})) as store:
        store.list_files()

    assert str(caught.value).startswith("s3://bucket/")
    assert f"the {name} has a line break or a character that is not ASCII" in str(caught.value)
    assert odd not in str(caught.value)


def _opened(settings: StoreSettings) -> Store:
    return open_store("s3://bucket/data", settings)
