"""What a script needs in its environment to reach the store of its job by itself.

Only for channels that are streamed; nothing of it is ever written to disk. Used by
`trainjob.training`.
"""

import json
import os
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus

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

_MIN_LINE_CHARS = 8
"""A shorter line of a secret, such as the bracket that ends JSON, tells nothing."""


def access_environment(settings: StoreSettings) -> dict[str, str]:
    """Return the variables by which S3 clients find store and credentials.

    If the settings name no key, the variables that say where this process finds its credentials.
    """
    region = settings.region
    values = (
        settings.access_key,
        settings.secret_key,
        settings.session_token,
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


def secrets_of(settings: StoreSettings, others: Iterable[str] = ()) -> list[str]:
    """Return what nobody may see of the settings and of other secrets, as programs may write it."""
    texts = (settings.secret_key, settings.session_token, *others)
    return list(dict.fromkeys(form for text in texts if text for form in _forms(text)))


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret and, since logs are read by lines, its lines, in all ways to write them."""
    lines = (line for line in secret.splitlines() if len(line) >= _MIN_LINE_CHARS)
    # A value that was pasted from a file ends in a newline, which programs take off.
    for text in (secret, secret.strip(), *lines):
        yield text
        yield from (quote(text), quote(text, safe=""), quote_plus(text))
        for as_literal in _escaped(text):
            yield as_literal
            yield from _escaped(as_literal)  # our own error-N.json has what a script has shown


def _escaped(text: str) -> Iterator[str]:
    """Yield a text as Python and JSON write it between quotes."""
    yield from (repr(text)[1:-1], ascii(text)[1:-1])
    yield from (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
