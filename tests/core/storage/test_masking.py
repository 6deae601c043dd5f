"""Secrets never leave the machine, however the text that holds them is cut into pieces."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainjob.storage.masking import Masked

TEXT = st.text(alphabet="abc\n", max_size=40)
SECRETS = st.lists(st.text(alphabet="abc", max_size=5), max_size=3)


def pieces(text: bytes, size: int) -> list[bytes]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def plainly_masked(text: bytes, secrets: list[str]) -> bytes:
    known = sorted((secret.encode() for secret in secrets if secret), key=len, reverse=True)
    return re.sub(b"|".join(map(re.escape, known)), b"***", text) if known else text


@given(TEXT, SECRETS, st.integers(1, 7))
def test_pieces_are_masked_like_the_whole_text(text, secrets, size):
    masked = Masked(pieces(text.encode(), size), secrets, is_whole=True)

    assert b"".join(masked) == plainly_masked(text.encode(), secrets)
    assert not masked.is_cut


@given(TEXT, SECRETS, st.integers(1, 7), st.integers(0, 40))
def test_a_text_that_goes_on_shows_nothing_that_the_whole_hides(text, secrets, size, length):
    data = text.encode()
    masked = Masked(pieces(data[:length], size), secrets, is_whole=False)

    shown = b"".join(masked)

    assert plainly_masked(data, secrets).startswith(shown)


@pytest.mark.parametrize(
    ("text", "shown", "is_cut"),
    [
        (b"key=hunter2\n", b"key=***\n", False),
        (b"key=hunt", b"key=", True),
        (b"key=hunter2hun", b"key=***", True),
        (b"h", b"", True),
        (b"no secret at all", b"no secret at all", False),
        (b"", b"", False),
    ],
)
def test_an_end_that_may_become_a_secret_is_held_back(text, shown, is_cut):
    masked = Masked([text], ["hunter2"], is_whole=False)

    assert b"".join(masked) == shown
    assert masked.is_cut == is_cut


def test_of_two_secrets_that_start_alike_the_longer_one_is_hidden():
    masked = Masked([b"abc abcdef"], ["abc", "abcdef"], is_whole=True)

    assert b"".join(masked) == b"*** ***"


def test_an_empty_secret_hides_nothing():
    assert b"".join(Masked([b"text"], ["", ""], is_whole=False)) == b"text"
