"""Where the requests for a bucket go: scheme, host, and whether the bucket is in host or path.

The rules are those of botocore, so that the same settings lead to the same place:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html
"""

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from trainjob.storage.curl import chain
from trainjob.storage.key_failures import ChainError
from trainjob.storage.refusals import bad_name, impossible
from trainjob.storage.settings import StoreSettings

DEFAULT_REGION = "us-east-1"

_AWS = re.compile(
    r"(?:.*\.)?s3(?:[.-].*)?\.(?:amazonaws\.com(?:\.cn)?|amazonaws\.eu|api\.aws)\.?", re.IGNORECASE
)
"""Its hosts, see https://docs.aws.amazon.com/general/latest/gr/s3.html; below the same domains are
machines of customers, with stores of their own."""

_BUCKET = re.compile(r"[a-zA-Z0-9.\-_]{1,255}")
_REGION = re.compile(r"[a-zA-Z0-9.\-_]+")
_HOST_LABELS = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a bucket is.

    Attributes:
        endpoint: The endpoint without a path, for messages.
        host: The value of the ``Host`` header.
        origin: Scheme and host, as URLs begin.
        path: What stands between the origin and the ``/`` before a key; may be empty.
        region: What requests are signed for.
        is_guessed: Whether nobody named the endpoint, so that the store may know a better one.
        is_aws: Whether it is the store of AWS.
        ca_bundle: The file with the certificates to trust; None without TLS.
    """

    endpoint: str
    host: str
    origin: str
    path: str
    region: str
    is_guessed: bool
    is_aws: bool
    ca_bundle: str | None


def address_of(bucket: str, settings: StoreSettings, region: str = "") -> Address:
    """Return where `bucket` is.

    Args:
        bucket: Its name.
        settings: What is said about the store; the rest is botocore's configuration.
        region: The region of the bucket, if the store has named it.

    Raises:
        StoreError: If the bucket or the endpoint cannot be one.
    """
    if not _BUCKET.fullmatch(bucket):
        raise bad_name(f"s3://{bucket}/")
    try:
        return _address_of(bucket, settings, region)
    except ChainError as error:  # such as a profile that is in no file
        raise impossible(f"s3://{bucket}/", str(error)) from error


def _address_of(bucket: str, settings: StoreSettings, region: str) -> Address:
    region = region or settings.region or chain.region() or DEFAULT_REGION
    if not _REGION.fullmatch(region):
        raise impossible(f"s3://{bucket}/", f"the region {region!r} is no name of one")
    given = settings.endpoint_url or chain.endpoint()
    endpoint = given or chain.aws_endpoint(region)
    parts, port = _parts_of(endpoint, f"s3://{bucket}/")
    in_host = _in_host(bucket, settings, is_aws=given is None, is_tls=parts.scheme == "https")
    host = str(parts.hostname)
    host = f"[{host}]" if ":" in host else host
    at_port = f":{port}" if port and port != _DEFAULT_PORTS[parts.scheme] else ""
    full_host = f"{bucket}.{host}{at_port}" if in_host else f"{host}{at_port}"
    path = parts.path.rstrip("/") + ("" if in_host else f"/{bucket}")
    return Address(
        endpoint=f"{parts.scheme}://{host}{at_port}",
        host=full_host,
        origin=f"{parts.scheme}://{full_host}",
        path=path,
        region=region,
        is_guessed=given is None,
        is_aws=given is None or _AWS.fullmatch(host) is not None,
        ca_bundle=_ca_bundle(settings) if parts.scheme == "https" else None,
    )


def _parts_of(endpoint: str, url: str) -> tuple[SplitResult, int | None]:
    """Return the parts of an endpoint and its port, if it names one."""
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or not endpoint.isascii():
        raise impossible(
            url, "the endpoint is no ASCII address that begins with http:// or https://"
        )
    return parts, port


def _in_host(bucket: str, settings: StoreSettings, *, is_aws: bool, is_tls: bool) -> bool:
    if settings.addressing_style != "auto":
        return settings.addressing_style == "virtual"
    # A certificate for *.host does not cover a bucket with dots.
    return is_aws and bool(_HOST_LABELS.fullmatch(bucket)) and not (is_tls and "." in bucket)


def _ca_bundle(settings: StoreSettings) -> str:
    """Return the certificates: libcurl's own default is a path of the machine that built it."""
    return str(settings.ca_bundle or chain.ca_bundle())
