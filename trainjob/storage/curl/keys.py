"""The keys that requests to S3 are signed with."""

from typing import NamedTuple


class Keys(NamedTuple):
    """An access key with its secret, and the token of temporary ones."""

    access_key: str
    secret_key: str
    token: str | None

    def __repr__(self) -> str:
        """Return a text without the secret."""
        return f"Keys({self.access_key!r})"
