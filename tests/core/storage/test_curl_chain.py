"""What the environment says is taken as botocore takes it, and without loading botocore."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from botocore.session import Session

from trainjob.errors import StoreDenied, StoreError
from trainjob.storage.curl import chain
from trainjob.storage.curl.addressing import address_of
from trainjob.storage.curl.credentials import Credentials
from trainjob.storage.settings import StoreSettings

KEY = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
FILES = {
    "config": "[default]\nregion = eu-west-3\nendpoint_url = http://file:1\n",
    "config-ignoring": "[default]\nignore_configured_endpoint_urls = true\n",
    "credentials": "[default]\naws_access_key_id = filed\naws_secret_access_key = secret\n",
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path


@pytest.mark.parametrize(
    "environment",
    [
        {},
        KEY,
        {**KEY, "AWS_SESSION_TOKEN": "token"},
        {**KEY, "AWS_SESSION_TOKEN": "new", "AWS_SECURITY_TOKEN": "old"},
        {**KEY, "AWS_SESSION_TOKEN": ""},
        {**KEY, "AWS_PROFILE": "default"},
        {**KEY, "AWS_CREDENTIAL_EXPIRATION": "2099-01-01T00:00:00Z"},
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "secret"},
    ],
)
def test_keys_are_those_that_botocore_takes(environment, files, monkeypatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    expected = Session().get_credentials().get_frozen_credentials()

    keys = Credentials(StoreSettings(), "s3://b/").keys()

    assert keys == expected[:3]


def test_half_of_the_keys_in_the_environment_is_refused(files, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")

    with pytest.raises(StoreDenied, match="s3://b/: no complete credentials"):
        Credentials(StoreSettings(), "s3://b/").keys()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"AWS_DEFAULT_REGION": "cn-north-1"},
        {"AWS_DEFAULT_REGION": "cn-north-1", "AWS_REGION": "cn-north-4"},
        {"AWS_ENDPOINT_URL": "http://all:1"},
        {"AWS_ENDPOINT_URL": "http://all:1", "AWS_ENDPOINT_URL_S3": "http://s3:1"},
        {"AWS_ENDPOINT_URL": "http://all:1", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
        {"AWS_ENDPOINT_URL": "http://all:1", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false"},
        {"AWS_ENDPOINT_URL": "http://all:1", "AWS_CONFIG_FILE": "config-ignoring"},
        {"AWS_CONFIG_FILE": "absent"},
    ],
)
def test_region_and_endpoint_are_those_that_botocore_takes(environment, files, monkeypatch) -> None:
    monkeypatch.chdir(files)
    for name, value in {**KEY, **environment}.items():
        monkeypatch.setenv(name, value)
    client = Session().create_client("s3", region_name=None if chain.region() else "us-east-1")
    is_aws = client.meta.endpoint_url.endswith("amazonaws.com")

    assert (chain.region() or "us-east-1") == client.meta.region_name
    assert chain.endpoint() == (None if is_aws else client.meta.endpoint_url)


def test_a_profile_that_is_in_no_file_is_named(files, monkeypatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nope")

    with pytest.raises(StoreError, match=r"s3://bkt/: .*profile \(nope\) could not be found"):
        address_of("bkt", StoreSettings())


def test_a_file_below_a_home_that_nobody_has_is_none(files, monkeypatch) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "~nosuchuser/config")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all:1")

    assert chain.endpoint() == "http://all:1"


def test_where_the_environment_says_all_botocore_is_not_loaded(tmp_path) -> None:
    (tmp_path / "config").write_text("[default]\nregion = eu-west-3\n")
    script = (
        "import sys\n"
        "from trainjob.storage.curl.bucket import Bucket\n"
        "from trainjob.storage.settings import StoreSettings\n"
        "assert not Bucket('b', StoreSettings()).is_anonymous\n"
        "sys.exit('botocore' in sys.modules)\n"
    )
    environment = {
        **os.environ,
        **KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "https://host",
        "AWS_CA_BUNDLE": "/ca.pem",
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
    }

    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False)

    assert done.returncode == 0
