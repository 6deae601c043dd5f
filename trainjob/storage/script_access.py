"""What a script needs in its environment to reach the store of its job by itself.

Only for channels that are streamed; nothing of it is ever written to disk. Used by
`trainjob.training`.
"""

import os
from collections.abc import Iterable

from pydantic import SecretStr

from trainjob.storage.settings import StoreSettings

ACCESS_ENV = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_CA_BUNDLE",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
)
"""What the script is given; botocore, and with it boto3 and s3fs, reads these by itself."""

_WHERE_CREDENTIALS_ARE = (
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_EC2_METADATA_DISABLED",
)


def access_environment(settings: StoreSettings) -> dict[str, str]:
    """Return the variables by which S3 clients find store and credentials.

    If the settings name no key, the variables that say where this process finds its credentials.
    """
    region = settings.region
    values = (
        settings.access_key,
        _revealed(settings.secret_key),
        _revealed(settings.session_token),
        settings.endpoint_url,
        region,
        region,
        str(settings.ca_bundle) if settings.ca_bundle else None,
        settings.checksums,
        settings.checksums,
    )
    given = {name: value for name, value in zip(ACCESS_ENV, values, strict=True) if value}
    if settings.access_key:
        return given
    return {name: os.environ[name] for name in _WHERE_CREDENTIALS_ARE if name in os.environ} | given


def secrets_of(settings: StoreSettings) -> list[str]:
    """Return what of the settings nobody may see."""
    texts: Iterable[str | None] = map(_revealed, (settings.secret_key, settings.session_token))
    return [text for text in texts if text]


def _revealed(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None
