"""Which tries of a request are followed by another one, and when."""

import random
from http import HTTPStatus

import pycurl

TRIES = 6
BUSY = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
"""What a store answers that is asked too much."""

FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 30.0

NO_CERTIFICATES = pycurl.E_SSL_CACERT_BADFILE
"""libcurl's error for a file of certificates that it cannot use."""

_NOT_TRUSTED = {pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_ISSUER_ERROR}
_FOR_GOOD = {
    pycurl.E_UNSUPPORTED_PROTOCOL,
    pycurl.E_URL_MALFORMAT,
    pycurl.E_READ_ERROR,
    pycurl.E_BAD_FUNCTION_ARGUMENT,
    pycurl.E_OUT_OF_MEMORY,
    NO_CERTIFICATES,
    *_NOT_TRUSTED,
}


def is_not_trusted(code: int) -> bool:
    """Say whether libcurl's error is about the certificate of the store."""
    return code in _NOT_TRUSTED


def may_pass(code: int) -> bool:
    """Say whether what libcurl tells may be gone the next time, as all that networks do is."""
    return code not in _FOR_GOOD


def pause_s(tries: int, retry_after: str = "") -> float:
    """Return how long to wait after so many tries.

    Args:
        tries: How many there were.
        retry_after: What the store asks for, in seconds; anything else than a number is ignored.
    """
    # Jitter: what broke off together does not come back together.
    pause = FIRST_PAUSE_S * (1 << tries - 1) * random.uniform(0.5, 1)  # noqa: S311 - no secret
    asked = float(retry_after) if retry_after.isdecimal() else 0.0
    return min(max(pause, asked), _LONGEST_PAUSE_S)
