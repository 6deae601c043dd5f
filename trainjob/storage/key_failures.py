"""Why botocore's usual chain gives no keys to sign with, and whether a later try may help.

Both engines for ``s3://`` ask that chain. It is loaded in here only when it has been already:
loading botocore takes as long as a thousand small files take to arrive.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trainjob.errors import StoreError
from trainjob.storage import refusals

if TYPE_CHECKING:
    from botocore.exceptions import ClientError


_SENDABLE = re.compile(r"[ -~]*")


class ChainError(Exception):
    """The configuration cannot be read, or what should give keys fails; caused by the reason."""


@contextmanager
def chain_failures() -> Iterator[None]:
    """Raise what goes wrong when botocore's chain is asked as a `ChainError`."""
    # Inside, see above.
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    # From OSError on: a program that is to give keys and is not there, or says something else.
    except (BotoCoreError, ClientError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ChainError(str(error)) from error
    except RuntimeError as error:
        if not are_over(error):
            raise
        raise ChainError(str(error)) from error


def are_over(error: RuntimeError) -> bool:
    """Say whether botocore raised this since the newest keys have ended; it has no class for it."""
    return "credentials are still expired" in str(error)


def refuse_odd(access_key: object, token: object, url: str) -> None:
    """See that what is sent of the keys can stand in a header.

    Raises:
        StoreDenied: Naming what cannot, such as a key with the line break of its file.
    """
    for name, text in (("access key", access_key), ("session token", token)):
        if text and not _SENDABLE.fullmatch(str(text)):
            raise refusals.odd_key(url, name)


def no_keys(error: BaseException | None, url: str) -> StoreError:
    """Return the error for keys that cannot be had; `error` is what the chain raised."""
    # Inside, see above.
    from botocore.exceptions import (
        ClientError,
        CredentialRetrievalError,
        HTTPClientError,
        MetadataRetrievalError,
        NoCredentialsError,
        PartialCredentialsError,
    )
    from botocore.exceptions import ConnectionError as NoConnectionError

    if isinstance(error, ClientError):
        return refusals.refused(refusal_of(error), url)
    if isinstance(error, RuntimeError):
        return refusals.keys_are_over(url)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return refusals.no_credentials(url)
    passing = (CredentialRetrievalError, MetadataRetrievalError, HTTPClientError, NoConnectionError)
    return refusals.no_keys(url, str(error), may_pass=isinstance(error, passing))


def refusal_of(answer: "ClientError") -> refusals.Refusal:
    """Return what an answer that botocore raises says."""
    error = answer.response.get("Error", {})
    about = answer.response.get("ResponseMetadata", {})
    region = error.get("Region") or about.get("HTTPHeaders", {}).get("x-amz-bucket-region")
    return refusals.Refusal(
        operation=answer.operation_name,
        status=int(about.get("HTTPStatusCode", 0)),
        code=str(error.get("Code", "")),
        message=str(error.get("Message", "")),
        region=str(region or ""),
    )
