"""Hides what may be a secret in urls that are shown, whatever their scheme."""

import re

_LOGIN = re.compile(r"(?<=://)\S*@")
"""Up to the last @: a password may hold a / that should have been written as %2F, and quotes."""

_QUERY = re.compile(r"(://[^\s?]*)\?[^\s'\"]+")


def without_secrets(text: str) -> str:
    """Return a text in which everything before an @ and every query of a url is ``***``."""
    return _QUERY.sub(r"\1?***", _LOGIN.sub("***@", text))
