"""Hides what may be a secret in urls that are shown, whatever their scheme."""

import re

_SECRETS = re.compile(r"(?<=://)[^\s'\"]*@|\?[^\s'\"]+")
"""Up to the last @: a password may hold a / that should have been written as %2F."""


def without_secrets(text: str) -> str:
    """Return a text in which everything before an @ and every query of a url is ``***``."""
    return _SECRETS.sub(lambda found: "***@" if found[0].endswith("@") else "?***", text)
