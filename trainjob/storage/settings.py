"""How to reach an object store: endpoint, credentials and what the store needs of a client.

A job names its settings (an ObjectStore block), or they come from the AWS_* environment. They
matter for ``s3://`` urls only.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

_VIRTUAL_DOMAINS = (".myhuaweicloud.com", ".myqcloud.com", ".aliyuncs.com")
"""Where OBS, COS and OSS are."""


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """What it takes to reach an S3 store. Whatever is absent is left to botocore's usual chain.

    The secrets are not shown by ``repr``.
    """

    endpoint_url: str | None = None
    """Address of the store, such as `https://obs.cn-north-4.myhuaweicloud.com`; absent: AWS."""

    region: str | None = None
    """Region to sign for, such as `cn-north-4`."""

    access_key: str | None = None
    """Access key id."""

    secret_key: str | None = field(default=None, repr=False)
    """Secret access key."""

    session_token: str | None = field(default=None, repr=False)
    """Token of temporary credentials."""

    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """Whether the bucket stands in the path or in the host name; OBS, COS and OSS need virtual."""

    checksums: Literal["when_required", "when_supported"] = "when_required"
    """When to use the newer S3 checksums; OBS, COS, OSS and older MinIO need when_required. With
    when_supported every object that is written in one request carries its sha256, and large files,
    which go in parts, and what is read are compared with the checksum that the store finds and
    keeps, for which AWS is asked either way. The bytes of a tree are verified by trainjob in any
    case."""

    ca_bundle: Path | None = None
    """File with the certificates to trust instead of the usual ones."""

    @classmethod
    def from_env(cls) -> Self:
        """Read the AWS_* variables of this process; what they leave out stays absent.

        None of them says where the bucket stands, so endpoints of OBS, COS and OSS say it.
        """
        ca_bundle = _env("AWS_CA_BUNDLE")
        endpoint = _env("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        return cls(
            endpoint_url=endpoint,
            addressing_style="virtual" if _wants_virtual(endpoint or "") else "auto",
            region=_env("AWS_REGION", "AWS_DEFAULT_REGION"),
            access_key=_env("AWS_ACCESS_KEY_ID"),
            secret_key=_env("AWS_SECRET_ACCESS_KEY"),
            session_token=_env("AWS_SESSION_TOKEN"),
            ca_bundle=Path(ca_bundle) if ca_bundle else None,
        )


def _wants_virtual(endpoint: str) -> bool:
    try:
        host = urlsplit(endpoint).hostname or ""
    except ValueError:  # no url, which is told when a bucket is asked for
        return False
    return host.endswith(_VIRTUAL_DOMAINS)


def _env(*names: str) -> str | None:
    """Return the first of the variables that is set and not empty."""
    return next((os.environ[name] for name in names if os.environ.get(name)), None)
