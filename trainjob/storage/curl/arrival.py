"""What can be said of an object that arrived: whether it is the one that was listed, and whole."""

from trainjob.errors import CorruptData, StoreError, StoreUnavailable, TreeChanged
from trainjob.storage.curl.request import Answer
from trainjob.storage.failures import failure
from trainjob.storage.listing import Entry, is_version
from trainjob.storage.refusals import changed_object

GONE = 404
CHANGED = 412
PARTIAL = 206
ANSWERS = frozenset({GONE, CHANGED})
"""Statuses that `check_version` turns into errors."""


def condition(entry: Entry) -> dict[str, str]:
    """Return the header that asks for the version that was listed and no other."""
    return {"if-match": entry.version} if entry.version else {}


def check_version(answer: Answer, entry: Entry, url: str) -> None:
    """See that the answer is about the version that was listed.

    Raises:
        TreeChanged: If it is not, or the object is gone.
    """
    if answer.status == GONE:
        found = "the object was deleted while the tree was copied"
        raise failure(TreeChanged, url, found, "run again when nothing writes to it")
    if answer.status == CHANGED or not is_version(answer.etag, entry):
        # A store that does not know If-Match answers with the new version.
        raise changed_object(url)


def check_is_part(answer: Answer, url: str) -> None:
    """See that the answer holds the range that was asked for, and not the whole object.

    Raises:
        StoreError: If it does not.
    """
    if answer.status != PARTIAL:
        found = f"the store does not serve parts of objects (status {answer.status})"
        raise failure(StoreError, url, found, "set TRAINJOB_STORAGE_ENGINE=fsspec")


def is_encrypted(answer: Answer) -> bool:
    """Say whether the ETag is no MD5 of the bytes even if it looks like one.

    So it is for objects that are encrypted with a key of a key service or of the client:
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    with_key = answer.header("x-amz-server-side-encryption-customer-algorithm")
    return bool(with_key) or answer.header("x-amz-server-side-encryption") not in ("", "AES256")


def too_short(url: str, received: int, entry: Entry) -> StoreError:
    """Return the error for an object of which fewer, or more, bytes came than were listed."""
    found = f"{received} of {entry.size_bytes} bytes arrived"
    return failure(StoreUnavailable, url, found, "try again")


def wrong_digest(url: str, told: str) -> StoreError:
    """Return the error for bytes that are not those that the store has `told` of."""
    name = told.partition(":")[0]
    found = f"the bytes that arrived do not have the {name.upper()} that the store tells"
    return failure(CorruptData, url, found, "try again, or put the object there again")
