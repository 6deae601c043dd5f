"""What it means that an S3 store refuses a request or cannot be reached, whatever engine asked.

Codes are those of https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html; other
stores use the same. What a store says in prose about denied requests is never repeated, since it
may quote the request.
"""

from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

from trainjob.errors import (
    CorruptData,
    StoreDenied,
    StoreError,
    StoreNotFound,
    StoreUnavailable,
    TreeChanged,
)
from trainjob.storage.failures import failure

EXPIRED = frozenset(
    # The last one is of OSS.
    {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "SecurityTokenExpired"}
)
"""Temporary credentials are over."""

MAY_BE_OVER = EXPIRED | {"InvalidAccessKeyId", "InvalidToken", "InvalidTokenId"}
"""New credentials may be had: MinIO forgets the keys of those that are over
(https://github.com/minio/minio/issues/14794), and so does who has changed a key."""

_NOT_ALLOWED = {"AccessDenied", "AllAccessDisabled", "AccountProblem"}
_BAD_CREDENTIALS = {
    "AuthorizationHeaderMalformed",
    "InvalidAccessKeyId",
    "InvalidSecurity",
    "InvalidToken",
    "InvalidTokenId",
    "SignatureDoesNotMatch",
}
_UNAVAILABLE = {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling"}
_SPOILED = {"BadDigest", "XAmzContentSHA256Mismatch"}
_CORRUPT = {*_SPOILED, "InvalidPart"}
_ELSEWHERE = (
    HTTPStatus.MOVED_PERMANENTLY,
    HTTPStatus.TEMPORARY_REDIRECT,
    HTTPStatus.PERMANENT_REDIRECT,
)
_CHANGED = (
    HTTPStatus.PRECONDITION_FAILED,
    # No range is asked for but of what was listed: the object became shorter, in a store that does
    # not know If-Match.
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
)
_OTHER_REGION = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_SKEWED = "RequestTimeTooSkewed"
_ARCHIVED = "InvalidObjectState"
_MAX_WHY = 300  # a program that gives keys may say much
_WITHOUT_BODY = {"HeadObject", "HeadBucket"}  # nor any code
_PATH_STYLE_REFUSED = "SecondLevelDomainForbidden"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is an error.

    Attributes:
        operation: What was asked, such as ``PutObject``.
        status: The HTTP status.
        code: The code of S3; empty if the answer has none.
        message: What the store says about it.
        region: The region of the bucket, if the answer names it.
    """

    operation: str
    status: int
    code: str = ""
    message: str = ""
    region: str = ""

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed a little later."""
        return self.is_busy or self.code in _SPOILED

    @property
    def is_busy(self) -> bool:
        """Whether the store cannot answer now."""
        return (
            self.code in _UNAVAILABLE
            or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
            or self.status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
        )

    @property
    def other_region(self) -> str:
        """The region to ask instead; empty if this is not what is wrong."""
        is_it = self.status in _ELSEWHERE or self.code in _OTHER_REGION
        return self.region if is_it else ""


def refused(refusal: Refusal, url: str) -> StoreError:
    """Return the error for a request for `url` that the store refused."""
    return (
        _denied(refusal, url)
        or _not_there(refusal, url)
        or _busy_or_corrupt(refusal, url)
        or _other(refusal, url)
    )


def no_credentials(url: str) -> StoreError:
    """Return the error for a store that wants credentials when there are none, or not all."""
    do = (
        "name a saved store (store: in a job, --store in a command), or set "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )
    return failure(StoreDenied, url, "no complete credentials for the store", do)


def no_keys(url: str, why: str, *, may_pass: bool) -> StoreError:
    """Return the error for credentials that are configured and cannot be had.

    Args:
        url: What was asked for.
        why: What the place that should give them says.
        may_pass: Whether it may give them a little later.
    """
    found = f"the credentials cannot be had ({one_line(why)[:_MAX_WHY]})"
    do = (
        "mend what gives them on this machine (credential_process, single sign-on, role), "
        "or name a saved store"
    )
    return failure(StoreUnavailable if may_pass else StoreDenied, url, found, do)


def keys_are_over(url: str) -> StoreError:
    """Return the error for keys that have an end, which the clock of this machine is behind."""
    found = "the newest credentials that can be had are over, by the clock of this machine"
    do = "get new temporary credentials, or set the clock of this machine"
    return failure(StoreDenied, url, found, do)


def odd_key(url: str, name: str) -> StoreError:
    """Return the error for an access key, or a token, that cannot be sent to any store."""
    found = f"the {name} has a line break or a character that is not ASCII"
    do = "set it to what the store gave out, and see that no line break is saved with it"
    return failure(StoreDenied, url, found, do)


def not_trusted(url: str, why: str) -> StoreError:
    """Return the error for a store whose certificate is not one of those that are trusted."""
    found = f"the certificate of the store is not trusted ({one_line(why)})"
    do = "set ca_bundle to the certificates to trust, or correct the endpoint"
    if "expired" in why or "not yet valid" in why:
        do = "renew the certificate of the store, or set the clock of this machine"
    return failure(StoreError, url, found, do)


def no_certificates(url: str, why: str) -> StoreError:
    """Return the error for a file that should hold the certificates to trust, and does not."""
    found = f"the certificates to trust cannot be read ({one_line(why)})"
    do = "let ca_bundle of the store, or AWS_CA_BUNDLE, be a file with certificates (PEM)"
    return failure(StoreError, url, found, do)


def bad_name(url: str) -> StoreError:
    """Return the error for a bucket or key that cannot be one."""
    do = "give s3://bucket/prefix/ as the store spells it"
    return failure(StoreError, url, "a bucket or key of a form that S3 does not know", do)


def unreachable(url: str, endpoint: str, why: str) -> StoreError:
    """Return the error for a request that got no whole answer."""
    at = f" at {endpoint}" if endpoint else ""
    found = f"no whole answer from the store{at} ({one_line(why)})"
    return failure(StoreUnavailable, url, found, "check the endpoint and the network")


def impossible(url: str, why: str) -> StoreError:
    """Return the error for a request that could not even be made."""
    found = f"the request could not be made ({one_line(why)})"
    return failure(StoreError, url, found, "check the url and the settings of the store")


def changed_object(url: str) -> StoreError:
    """Return the error for an object that is another one than was listed."""
    found, do = "the object changed while it was copied", "run again when nothing writes to it"
    return failure(TreeChanged, url, found, do)


def endpoint_name(address: str) -> str:
    """Return an endpoint as messages show it: without what somebody wrote as a password."""
    parts = urlsplit(address)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}"


def one_line(text: str) -> str:
    """Return a text so that it fits into a message."""
    return " ".join(text.split()).replace(";", ",")


def _denied(refusal: Refusal, url: str) -> StoreError | None:
    code, status = refusal.code, refusal.status
    if code in _NOT_ALLOWED:
        found = f"the credentials are not allowed to do this ({refusal.operation}: {code})"
        return failure(StoreDenied, url, found, "ask for the right, or use other credentials")
    if code == _SKEWED:
        found = f"the store refuses the time of this machine ({code})"
        return failure(StoreDenied, url, found, "set the clock of this machine")
    if code in EXPIRED:
        found = f"the credentials are no longer valid ({code})"
        return failure(StoreDenied, url, found, "get new temporary credentials")
    if refusal.other_region:
        found = f"the bucket is in the region {refusal.other_region!r} ({code or status})"
        do = "set this region, and the endpoint that belongs to it"
        return failure(StoreError, url, found, do)
    if code == _PATH_STYLE_REFUSED:
        found = f"the store wants the bucket in the host name ({code})"
        return failure(StoreError, url, found, "set addressing_style to virtual")
    if code == _ARCHIVED:
        found = f"the object is archived ({code})"
        do = "restore it in the store, or move it to a storage class that can be read"
        return failure(StoreDenied, url, found, do)
    if status == HTTPStatus.FORBIDDEN and code and code not in _BAD_CREDENTIALS:
        # A quota, a bill, a disabled key of the key service, …: stores have codes of their own.
        found = f"the store refuses the request ({code})"
        do = "look up what the store means by it, for the account, the bucket or the credentials"
        return failure(StoreDenied, url, found, do)
    if code in _BAD_CREDENTIALS or status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        found = f"the store refuses these credentials ({code or status})"
        do = "check the access key and its secret, and the endpoint they are for"
        return failure(StoreDenied, url, found, do)
    return None


def _not_there(refusal: Refusal, url: str) -> StoreError | None:
    if refusal.code == "NoSuchBucket":
        do = "create the bucket or correct its name"
        return failure(StoreNotFound, url, "no bucket of that name", do)
    if refusal.status == HTTPStatus.NOT_FOUND:
        return failure(StoreNotFound, url, "no such object", "check the url")
    if refusal.status in _CHANGED:
        return changed_object(url)
    return None


def _busy_or_corrupt(refusal: Refusal, url: str) -> StoreError | None:
    if refusal.code in _CORRUPT:
        found = f"the store received other bytes than were sent ({refusal.code})"
        return failure(CorruptData, url, found, "try again")
    if refusal.is_busy:
        found = f"the store cannot answer now ({refusal.code or refusal.status})"
        return failure(StoreUnavailable, url, found, "try again later")
    return None


def _other(refusal: Refusal, url: str) -> StoreError:
    if refusal.status in _ELSEWHERE:
        do = "set the endpoint and the region of the bucket"
        return failure(StoreError, url, "the bucket is in another place", do)
    if not refusal.code and refusal.operation not in _WITHOUT_BODY:
        found = f"what answers is no S3 store, or a proxy before it ({refusal.status})"
        do = "check the endpoint, whether it is http:// or https://, and the proxies on the way"
        return failure(StoreError, url, found, do)
    message = f": {one_line(refusal.message)}" if refusal.message else ""
    found = f"the store refuses the request ({refusal.code or refusal.status}{message})"
    return failure(StoreError, url, found, "check the url and the settings of the store")
