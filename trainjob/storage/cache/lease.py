"""That a job uses a snapshot: an empty file ``leases/HOLDER@MACHINE@OWNER`` in its folder."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainjob.storage.cache.owner import Owner

_FOREIGN_LEASE_S = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Lease:
    """That `holder` uses a snapshot, by a process that may be there no more."""

    file: Path
    holder: str
    owner: Owner

    @classmethod
    def of(cls, root: Path, holder: str) -> "Lease":
        """Return the one that this process has, or would have, of the snapshot in a folder.

        Raises:
            ValueError: If the name of the holder cannot be that of a file.
        """
        if "/" in holder:
            raise ValueError(f"the holder of a dataset is {holder!r}; give a name without a slash")
        this = Owner.this()
        return cls(root / "leases" / f"{holder}@{this.machine}@{this}", holder, this)

    def is_alive(self) -> bool:
        """Say whether the process may still use the snapshot."""
        return self.owner.is_alive(self.file, _FOREIGN_LEASE_S)


def leases_in(root: Path) -> list[Lease]:
    """Return the leases of the snapshot in a folder, whatever else is there."""
    found = []
    with suppress(FileNotFoundError):
        for file in (root / "leases").iterdir():
            beside, _, token = file.name.rpartition("@")
            is_old = "@" not in beside  # of a trainjob that did not name the machine
            holder, _, machine = (f"{beside}@" if is_old else beside).rpartition("@")
            if owner := Owner.parse(token, machine):
                found.append(Lease(file, holder, owner))
    return found


def is_used(root: Path) -> bool:
    """Say whether somebody may still use the snapshot in a folder, whatever else is there."""
    return any(lease.is_alive() for lease in leases_in(root))
