"""Which files can be objects of a store: the other way round than `trainjob.storage.paths`."""

from collections.abc import Sequence

from trainjob.errors import UnsafeKey
from trainjob.storage.failures import failure
from trainjob.storage.listing import Entry

_MAX_KEY_BYTES = 1024  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
_REASON = f"has a key of more than the {_MAX_KEY_BYTES} bytes that S3 takes"


class KeyRules:
    """Says which paths below `url` its store cannot hold; nothing is reached."""

    def __init__(self, url: str) -> None:
        scheme, _, place = url.partition("://")
        prefix = place.partition("/")[2].rstrip("/")
        used = len(prefix.encode()) + bool(prefix)
        self._most_bytes = _MAX_KEY_BYTES - used if scheme == "s3" else None

    def refusal(self, path: str) -> str | None:
        """Say why a path cannot be a key; None if it can. One of a folder ends in ``/``."""
        if self._most_bytes is None or len(path) * 4 <= self._most_bytes:
            return None
        return _REASON if len(path.encode()) > self._most_bytes else None


def refuse_keys(url: str, files: Sequence[Entry]) -> None:
    """See that all files can be sent to `url`.

    Raises:
        UnsafeKey: Naming the first that cannot.
    """
    rules = KeyRules(url)
    for entry in files:
        if reason := rules.refusal(entry.path):
            found = f"{entry.path!r} {reason}"
            raise failure(UnsafeKey, url, found, "give it a shorter name")
