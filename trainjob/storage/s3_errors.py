"""From what botocore, aiohttp and s3fs raise to the errors of trainjob.

Codes are those of https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html; other
stores use the same. What a store says in prose about denied requests is never repeated, since it
may quote the request.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import urlsplit

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ResponseStreamingError,
    SSLError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnectionError

from trainjob.errors import (
    CorruptData,
    StoreDenied,
    StoreError,
    StoreNotFound,
    StoreUnavailable,
    TreeChanged,
)
from trainjob.storage.failures import failure

_NOT_ALLOWED = {"AccessDenied", "AllAccessDisabled", "AccountProblem"}
_BAD_CREDENTIALS = {
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}
_UNAVAILABLE = {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling"}
_CORRUPT = {"BadDigest", "XAmzContentSHA256Mismatch", "InvalidPart"}
_NO_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    TokenRetrievalError,
)
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
    except (BotoCoreError, ClientError, aiohttp.ClientError, OSError, ValueError) as error:
        raise _failure_of(error, url) from error


def _failure_of(error: Exception, url: str) -> StoreError:
    # s3fs turns answers of the store into OSErrors and keeps the answer as their cause.
    answer = error.__cause__ if isinstance(error.__cause__, ClientError) else error
    if isinstance(answer, ClientError):
        return _refusal(answer, url)
    if isinstance(error, _NO_CREDENTIALS):
        do = (
            "name a saved store (store: in a job, --store in a command), or set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
        return failure(StoreDenied, url, "no complete credentials for the store", do)
    if isinstance(error, SSLError):
        do = "set ca_bundle to the certificates to trust, or correct the endpoint"
        return failure(StoreError, url, "the certificate of the store is not trusted", do)
    if isinstance(error, FlexibleChecksumError):
        found = "the bytes that arrived do not match the checksum of the store"
        return failure(CorruptData, url, found, "try again")
    if isinstance(error, _UNREACHABLE):
        found = f"no whole answer from the store{_endpoint_of(error)} ({type(error).__name__})"
        return failure(StoreUnavailable, url, found, "check the endpoint and the network")
    if isinstance(error, ParamValidationError):
        do = "give s3://bucket/prefix/ as the store spells it"
        return failure(StoreError, url, "a bucket or key of a form that S3 does not know", do)
    found = f"the request could not be made ({_one_line(error)})"
    return failure(StoreError, url, found, "check the url and the settings of the store")


def _refusal(answer: ClientError, url: str) -> StoreError:
    code = str(answer.response.get("Error", {}).get("Code", ""))
    status = int(answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "NoSuchBucket":
        do = "create the bucket or correct its name"
        return failure(StoreNotFound, url, "no bucket of that name", do)
    if code in _NOT_ALLOWED:
        found = f"the credentials are not allowed to do this ({answer.operation_name}: {code})"
        return failure(StoreDenied, url, found, "ask for the right, or use other credentials")
    if code in _BAD_CREDENTIALS or status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        found = f"the store refuses these credentials ({code or status})"
        do = "check the access key and its secret, and the endpoint they are for"
        return failure(StoreDenied, url, found, do)
    if status == HTTPStatus.NOT_FOUND:
        return failure(StoreNotFound, url, "no such object", "check the url")
    if status == HTTPStatus.PRECONDITION_FAILED:
        found, do = "the object changed while it was copied", "run again when nothing writes to it"
        return failure(TreeChanged, url, found, do)
    if code in _CORRUPT:
        found = f"the store received other bytes than were sent ({code})"
        return failure(CorruptData, url, found, "try again")
    busy = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS
    if code in _UNAVAILABLE or busy:
        found = f"the store cannot answer now ({code or status})"
        return failure(StoreUnavailable, url, found, "try again later")
    if status in (HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.TEMPORARY_REDIRECT):
        do = "set the endpoint and the region of the bucket"
        return failure(StoreError, url, "the bucket is in another place", do)
    found = f"the store refuses the request ({code or status}: {_one_line(answer)})"
    return failure(StoreError, url, found, "check the url and the settings of the store")


def _endpoint_of(error: Exception) -> str:
    """Return where the request went, without its query."""
    address = getattr(error, "kwargs", {}).get("endpoint_url")
    parts = urlsplit(str(address)) if address else None
    if parts is None:
        return ""
    # Not the netloc, in which somebody may have written a password.
    port = f":{parts.port}" if parts.port else ""
    return f" at {parts.scheme}://{parts.hostname}{port}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).replace(";", ",") or type(error).__name__
