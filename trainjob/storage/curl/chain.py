"""What botocore's configuration says of S3: environment, shared files, roles of machines.

Asked for what the settings leave open. The environment has the first word with botocore, and is
asked without it: loading botocore takes as long as a thousand small files take to arrive.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainjob.storage.curl.keys import Keys
from trainjob.storage.key_failures import chain_failures


def keys_of_environment() -> Keys | None:
    """Return the keys of the environment; None if botocore has to look, or to renew them."""
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not key or not secret or os.environ.get("AWS_CREDENTIAL_EXPIRATION"):
        return None
    token = os.environ.get("AWS_SECURITY_TOKEN") or os.environ.get("AWS_SESSION_TOKEN")
    return Keys(key, secret, token or None)


def credentials() -> Any:
    """Return botocore's credentials, which renew themselves; None if there are none.

    Raises:
        ChainError: If there is only a part of them, or what should give them fails.
    """
    with chain_failures():
        return _session().get_credentials()


def keys_of(found: Any) -> Keys:
    """Return the keys that botocore's credentials are now.

    Raises:
        ChainError: If they cannot be renewed.
    """
    with chain_failures():
        frozen = found.get_frozen_credentials()
    return Keys(frozen.access_key, frozen.secret_key, frozen.token)


def region() -> str | None:
    """Return the region, if one is configured.

    Raises:
        ChainError: If the configuration cannot be read, as all below.
    """
    found = os.environ.get("AWS_DEFAULT_REGION")
    if not found:
        with chain_failures():
            found = _session().get_config_variable("region")
    return str(found) if found else None


def endpoint() -> str | None:
    """Return the endpoint of S3, if one is configured."""
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if given and not _may_be_ignored():
        return given
    from botocore.configprovider import ConfiguredEndpointProvider
    from botocore.utils import ensure_boolean

    with chain_failures():
        session = _session()
        if ensure_boolean(session.get_config_variable("ignore_configured_endpoint_urls")):
            return None
        files = {
            "full_config": session.full_config,
            "scoped_config": session.get_scoped_config(),
        }
        found = ConfiguredEndpointProvider(**files, client_name="s3").provide()
    return str(found) if found else None


def aws_endpoint(region: str) -> str:
    """Return the endpoint of S3 on AWS, in whatever part of it the region is."""
    from botocore.regions import EndpointResolver

    with chain_failures():
        endpoints = _session().get_component("data_loader").load_data("endpoints")
    resolver = EndpointResolver(endpoints)
    found = resolver.construct_endpoint("s3", region) or {}
    return f"https://{found.get('hostname', f's3.{region}.amazonaws.com')}"


def ca_bundle() -> str:
    """Return the file with the certificates to trust: the configured one, or the usual ones."""
    given = os.environ.get("AWS_CA_BUNDLE")
    if given:
        return given
    from botocore.httpsession import get_cert_path

    with chain_failures():
        return str(_session().get_config_variable("ca_bundle") or get_cert_path(True))


def _may_be_ignored() -> bool:
    """Whether the environment, or a file, says anything of ignoring configured endpoints."""
    if "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS" in os.environ:
        return True
    names = (
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
    )
    for name in names:
        with suppress(OSError):
            # Not Path.expanduser, which raises where there is no home folder.
            said = Path(os.path.expanduser(os.path.expandvars(name))).read_bytes()  # noqa: PTH111
            if b"ignore_configured_endpoint_urls" in said:
                return True
    return False


def _session() -> Any:
    from botocore.session import Session

    return Session()
