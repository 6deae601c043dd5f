"""Secrets in a text of which only a part is at hand: what of it may be shown, and how.

For `trainjob.launch.hidden`, which is about what people are told of a run, and
`trainjob.storage.masking`, which is about what is sent to stores.
"""

import re
from collections.abc import Iterable

_MASK = b"***"


class SecretTexts:
    """Texts that nobody may see; empty ones are ignored.

    Args:
        secrets: The texts.

    Attributes:
        overlap: How much of a text has to be known around a place to say that no secret is there.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first: of two that start alike, a pattern takes the one that is named first.
        self._secrets = sorted((secret.encode() for secret in secrets if secret), key=len)[::-1]
        self._pattern = re.compile(b"|".join(map(re.escape, self._secrets)))
        self.overlap = max(map(len, self._secrets), default=1) - 1

    def __bool__(self) -> bool:
        """Tell whether there is anything to hide."""
        return bool(self._secrets)

    def masked_until(self, text: bytes, end: int) -> tuple[bytes, bytes]:
        """Return what comes before `end`, or before the end of a secret there, and the rest."""
        clear, start = [], 0
        for match in self._pattern.finditer(text) if self else ():
            if match.start() >= end:
                break
            clear += [text[start : match.start()], _MASK]
            start = match.end()
        end = max(start, end)
        return b"".join([*clear, text[start:end]]), text[end:]

    def masked(self, text: bytes) -> bytes:
        """Return a whole text with ``***`` in the place of every secret."""
        return self.masked_until(text, len(text))[0]

    def open_end(self, text: bytes) -> int:
        """Return where an end begins that may become a secret when the text goes on."""
        return min(
            (
                len(text) - length
                for secret in self._secrets
                for length in range(1, len(secret))
                if text.endswith(secret[:length])
            ),
            default=len(text),
        )
