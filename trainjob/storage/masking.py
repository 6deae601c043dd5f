"""Replaces secrets in a text that is read piece by piece."""

from collections.abc import Iterable, Iterator, Sequence

from trainjob.secret_texts import SecretTexts


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
        self._secrets = SecretTexts(secrets)
        self._is_whole = is_whole

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces."""
        if not self._secrets:
            yield from self._chunks
            return
        held = b""
        for chunk in self._chunks:
            held += chunk
            # A secret that starts before this place is in the piece as a whole.
            end = max(len(held) - self._secrets.overlap, 0)
            clear, held = self._secrets.masked_until(held, end)
            yield clear
        end = len(held) if self._is_whole else self._secrets.open_end(held)
        clear, rest = self._secrets.masked_until(held, end)
        self.is_cut = bool(rest)
        yield clear
