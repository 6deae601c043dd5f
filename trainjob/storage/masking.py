"""Replaces secrets in a text that is read piece by piece."""

import re
from collections.abc import Iterable, Iterator, Sequence

_MASK = b"***"


class Masked:
    """The pieces of a text without the secrets. To be gone through once.

    Args:
        chunks: The text.
        secrets: What must not be seen; empty texts are ignored.
        is_whole: Whether the text ends here. Otherwise an end that may be the start of a secret is
            held back.

    Attributes:
        is_cut: Whether an end was held back; known when all pieces were read.
    """

    def __init__(self, chunks: Iterable[bytes], secrets: Sequence[str], *, is_whole: bool) -> None:
        self.is_cut = False
        self._chunks = chunks
        # The longest first: of two that start alike, a pattern takes the one that is named first.
        self._secrets = sorted((secret.encode() for secret in secrets if secret), key=len)[::-1]
        self._pattern = re.compile(b"|".join(map(re.escape, self._secrets)))
        self._is_whole = is_whole

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces."""
        if not self._secrets:
            yield from self._chunks
            return
        overlap = len(self._secrets[0]) - 1
        held = b""
        for chunk in self._chunks:
            held += chunk
            # A secret that starts before this place is in the piece as a whole.
            clear, held = self._masked_until(held, max(len(held) - overlap, 0))
            yield clear
        yield self._end(held)

    def _masked_until(self, text: bytes, end: int) -> tuple[bytes, bytes]:
        """Return what comes before `end`, or before the end of a secret there, and the rest."""
        clear, start = [], 0
        for match in self._pattern.finditer(text):
            if match.start() >= end:
                break
            clear += [text[start : match.start()], _MASK]
            start = match.end()
        end = max(start, end)
        return b"".join([*clear, text[start:end]]), text[end:]

    def _end(self, text: bytes) -> bytes:
        clear, rest = self._masked_until(text, len(text) if self._is_whole else self._cut(text))
        self.is_cut = bool(rest)
        return clear

    def _cut(self, text: bytes) -> int:
        """Return where an end begins that may become a secret."""
        return min(
            (
                len(text) - length
                for secret in self._secrets
                for length in range(1, len(secret))
                if text.endswith(secret[:length])
            ),
            default=len(text),
        )
