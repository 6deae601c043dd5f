"""From what botocore, aiohttp and s3fs raise to the errors of trainjob."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ResponseStreamingError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnectionError

from trainjob.errors import CorruptData, StoreError
from trainjob.storage import refusals
from trainjob.storage.failures import failure
from trainjob.storage.key_failures import ChainError, are_over, no_keys, refusal_of

_NO_KEYS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    MetadataRetrievalError,
    SSOError,
    TokenRetrievalError,
)
_NO_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, ssl.SSLError)
"""What aiobotocore meets when it opens the file of certificates, and meets nowhere else as it is:
what is wrong with a connection has a class of aiohttp around it."""
_UNREACHABLE = (
    NoConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
    aiohttp.ClientError,
    TimeoutError,
    ConnectionError,
)


@contextmanager
def s3_failures(url: str) -> Iterator[None]:
    """Raise whatever goes wrong with the request for `url` as a `StoreError`."""
    try:
        yield
    except StoreError:
        raise
    except ChainError as error:
        raise no_keys(error.__cause__, url) from error
    except RuntimeError as error:
        if not are_over(error):
            raise
        raise no_keys(error, url) from error
    except (BotoCoreError, ClientError, aiohttp.ClientError, OSError, ValueError) as error:
        raise _failure_of(error, url) from error


def _failure_of(error: Exception, url: str) -> StoreError:
    # s3fs turns answers of the store into OSErrors and keeps the answer as their cause.
    answer = error.__cause__ if isinstance(error.__cause__, ClientError) else error
    if isinstance(answer, ClientError):
        return refusals.refused(refusal_of(answer), url)
    if isinstance(error, _NO_KEYS):
        return no_keys(error, url)
    reason = getattr(error, "kwargs", {}).get("error")
    if isinstance(reason, aiohttp.ClientConnectorCertificateError):
        untrusted = reason.certificate_error
        return refusals.not_trusted(url, getattr(untrusted, "verify_message", str(untrusted)))
    if isinstance(error, HTTPClientError) and isinstance(reason, _NO_FILE):
        return refusals.no_certificates(url, str(reason))
    if isinstance(error, FlexibleChecksumError):
        found = "the bytes that arrived do not match the checksum of the store"
        return failure(CorruptData, url, found, "try again")
    if isinstance(error, _UNREACHABLE):
        address = getattr(error, "kwargs", {}).get("endpoint_url")
        endpoint = refusals.endpoint_name(str(address)) if address else ""
        return refusals.unreachable(url, endpoint, type(error).__name__)
    if isinstance(error, ParamValidationError):
        return refusals.bad_name(url)
    return refusals.impossible(url, str(error) or type(error).__name__)
