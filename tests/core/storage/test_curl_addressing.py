"""Where requests go: the bucket in path or host, ports, regions, other clouds, odd endpoints."""

import pytest

from trainjob.errors import StoreError
from trainjob.storage.curl.addressing import address_of
from trainjob.storage.settings import StoreSettings

OBS = "https://obs.cn-north-4.myhuaweicloud.com"


@pytest.mark.parametrize(
    ("bucket", "endpoint", "style", "region", "url", "host"),
    [
        ("bkt", None, "auto", None, "https://bkt.s3.us-east-1.amazonaws.com", ""),
        ("bkt", None, "auto", "cn-north-1", "https://bkt.s3.cn-north-1.amazonaws.com.cn", ""),
        ("b.kt", None, "auto", "eu-west-1", "https://s3.eu-west-1.amazonaws.com/b.kt", ""),
        ("Big_Bkt", None, "auto", "eu-west-1", "https://s3.eu-west-1.amazonaws.com/Big_Bkt", ""),
        ("bkt", None, "path", "eu-west-1", "https://s3.eu-west-1.amazonaws.com/bkt", ""),
        ("bkt", OBS, "auto", None, f"{OBS}/bkt", ""),
        ("bkt", OBS, "virtual", None, OBS.replace("obs", "bkt.obs"), ""),
        ("bkt", "http://host:8333", "path", None, "http://host:8333/bkt", "host:8333"),
        ("bkt", "https://host:443/", "auto", None, "https://host/bkt", "host"),
        ("bkt", "http://host:80", "virtual", None, "http://bkt.host", "bkt.host"),
        ("bkt", "http://[::1]:8333", "auto", None, "http://[::1]:8333/bkt", "[::1]:8333"),
        ("bkt", "https://host/base/", "auto", None, "https://host/base/bkt", "host"),
    ],
)
def test_a_bucket_is_where_botocore_would_look(bucket, endpoint, style, region, url, host):
    settings = StoreSettings(endpoint_url=endpoint, addressing_style=style, region=region)

    address = address_of(bucket, settings)

    assert f"{address.origin}{address.path}" == url
    assert address.origin == f"{address.endpoint.partition('://')[0]}://{address.host}"
    assert host in ("", address.host)
    assert address.region == (region or "us-east-1")
    assert address.is_guessed == (endpoint is None)


def test_endpoint_and_region_of_botocores_configuration_are_used(tmp_path, monkeypatch):
    config = tmp_path / "config"
    config.write_text("[default]\nregion = cn-east-3\nendpoint_url = http://host:9000\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))

    address = address_of("bkt", StoreSettings())

    assert (address.origin, address.path, address.region) == (
        "http://host:9000",
        "/bkt",
        "cn-east-3",
    )


@pytest.mark.parametrize("bucket", ["BAD BUCKET", "a/b", "", "x" * 256, "b\n"])
def test_what_cannot_be_a_bucket_is_refused(bucket):
    with pytest.raises(StoreError, match="of a form that S3 does not know"):
        address_of(bucket, StoreSettings(endpoint_url="http://host"))


@pytest.mark.parametrize(
    "endpoint", ["no address", "ftp://host", "http://", "http://host:port", "http://\u5b58\u50a8"]
)
def test_what_cannot_be_an_endpoint_is_refused(endpoint):
    with pytest.raises(StoreError, match="begins with http:// or https://"):
        address_of("bkt", StoreSettings(endpoint_url=endpoint))


@pytest.mark.parametrize("region", ["\u534e\u5317", " us-east-1", "us-east-1\n", "us east"])
def test_what_cannot_be_a_region_is_refused(region):
    """It is signed, and a store would say of the keys that they are wrong."""
    with pytest.raises(StoreError, match="is no name of one"):
        address_of("bkt", StoreSettings(endpoint_url="http://host", region=region))


def test_a_password_in_an_endpoint_is_not_shown():
    address = address_of("bkt", StoreSettings(endpoint_url="http://user:wr0ng@host"))

    assert "wr0ng" not in repr(address)


def test_certificates_are_those_of_the_settings_or_the_usual_ones(tmp_path):
    own = StoreSettings(endpoint_url="https://host", ca_bundle=tmp_path / "ca.pem")
    usual = address_of("bkt", StoreSettings(endpoint_url="https://host"))

    assert address_of("bkt", own).ca_bundle == str(tmp_path / "ca.pem")
    assert usual.ca_bundle is not None
    assert usual.ca_bundle.endswith(".pem")
    assert address_of("bkt", StoreSettings(endpoint_url="http://host")).ca_bundle is None
