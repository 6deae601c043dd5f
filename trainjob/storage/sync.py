"""What a folder is that is copied to a store while a run writes to it, and what is said of it.

`trainjob.storage.sync_thread` lets mirrors make their passes while a training runs; what a pass
does is the business of each kind of mirror: checkpoints, logs, outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from trainjob.errors import StoreError


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What the store holds of a folder after a pass.

    Attributes:
        label: What the folder is called.
        url: Where it is copied to.
        num_files: Files that the store holds.
        size_bytes: Their size.
        missing: Names of what the store does not hold (yet), a folder with a ``/`` at its end.
        num_sent: How many files this pass sent.
        odd: Those of the missing that cannot be sent as they are, and why.
        error: Why the pass ended early; None if it did not.
    """

    label: str
    url: str
    num_files: int
    size_bytes: int
    missing: tuple[str, ...] = ()
    num_sent: int = 0
    odd: Mapping[str, str] = field(default_factory=dict)
    error: StoreError | None = None


class Mirror(Protocol):
    """One local folder and its copy in a store. Used by one thread at a time.

    It can be made again in another process with the same arguments, and goes on there: what it
    knows is in the store and in its journal.
    """

    label: str
    url: str
    rest_factor: ClassVar[float]
    """How many times as long as the last pass the pause before the next one is, at least."""

    def look(self) -> bool:
        """Note what the folder holds now; return whether to look again in some seconds.

        Only files that are the same at the next push count as finished. Nothing is sent.
        """

    def push(self, is_final: bool) -> SyncReport:
        """Send what is ready; at the end of the run, what there is.

        Raises:
            StoreError: What was sent before stays, and the next pass goes on from there.
        """

    def known(self, error: StoreError | None = None) -> SyncReport:
        """Return what is saved and what is missing as far as this side knows, store unasked."""
