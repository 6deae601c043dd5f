"""What a registration did with one thing on the server, as one line."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one thing.

    Attributes:
        verb: Whether it was made, brought up to date, not touched, or deleted.
        what: Kind and name of the thing.
        why: What there is to know about it; empty if nothing.
    """

    verb: Literal["created", "changed", "left", "removed"]
    what: str
    why: str = ""

    def __str__(self) -> str:
        """Return the line that a person reads."""
        return f"{self.verb:<8} {self.what}" + (f": {self.why}" if self.why else "")
