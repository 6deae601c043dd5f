"""Keeps secrets that the ranks have in their environment out of what is told of the ranks.

A script may print its environment. Its log stays on the machine as it is; what goes from there to
watchers, failure reports and Prefect goes through `without_secrets`, before anything cuts it: the
half of a secret is not recognised any more.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from trainjob.secret_texts import SecretTexts

_secrets: ContextVar[tuple[str, ...]] = ContextVar("trainjob_secrets", default=())


@contextmanager
def hiding(secrets: Sequence[str]) -> Iterator[None]:
    """Hide these texts in this block and in threads that are given its context."""
    # The longest first: one may be a part of another.
    token = _secrets.set(tuple(sorted(filter(None, secrets), key=len, reverse=True)))
    try:
        yield
    finally:
        _secrets.reset(token)


def hidden_texts() -> SecretTexts:
    """Return what is hidden here, for whoever has only a part of a text."""
    return SecretTexts(_secrets.get())


def lines_without_secrets(lines: Sequence[str]) -> tuple[str, ...]:
    """Return lines, each as `without_secrets` does."""
    return tuple(map(without_secrets, lines)) if _secrets.get() else tuple(lines)


def without_secrets(text: str) -> str:
    """Return the text with ``***`` in the place of every secret."""
    for secret in _secrets.get():
        text = text.replace(secret, "***")
    return text
