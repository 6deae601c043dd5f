"""Saved versions by name and number, wherever they are kept.

A place keeps the values of each version; `trainjob.registry.folder` has the one that needs no
server. What a version is, which number is next and who uses whom is decided here.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from trainjob.errors import TrainjobError
from trainjob.job_problems import problems_of
from trainjob.registry.records import (
    Kind,
    Record,
    Reference,
    RegistryError,
    SavedAlgorithm,
    SavedDataset,
    SavedModel,
)

R = TypeVar("R", bound=Record)

_MAX_NAMED = 20
_DIGEST = "values_sha256"
"""Key beside the values of a version: their digest, by which a change by hand is seen."""
_MODELS: dict[Kind, type[Record]] = {
    "algorithm": SavedAlgorithm,
    "dataset": SavedDataset,
    "model": SavedModel,
}


@dataclass(frozen=True, slots=True)
class Kept:
    """A version as its place keeps it, also one that was deleted.

    Attributes:
        name: Its name.
        number: Its number.
        read: Returns its values, or raises `RegistryError` if they cannot be read.
    """

    name: str
    number: int
    read: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class KeptFlavors:
    """What a place says of the flavors of the platform; see `trainjob.flavor_catalogue`.

    Attributes:
        source: What messages call it.
        lines: The name or size of each flavor, and what is said of it, not looked at yet.
    """

    source: str
    lines: Sequence[tuple[str, Any]]


class Place(Protocol):
    """Keeps the values of versions. Every method raises errors of `trainjob.errors` only."""

    def __str__(self) -> str:
        """Return what people call the place."""

    def versions(self, kind: Kind, name: str | None = None) -> list[Kept]:
        """Return all versions of a name, or of all names, by name and number."""

    def last_number(self, kind: Kind, name: str) -> int:
        """Return the highest number that was ever given; 0 if there was none."""

    def create(self, kind: Kind, name: str, number: int, values: dict[str, Any]) -> None:
        """Keep the values of a new version, whole or not at all; its number is given from then on.

        Raises:
            FileExistsError: If there is one of that number, which stays as it is.
        """

    def replace(self, kind: Kind, name: str, number: int, values: dict[str, Any]) -> None:
        """Keep other values under a number that was given."""

    def keep_files(self, key: str, packed: bytes) -> None:
        """Keep the list of the files with a fingerprint; what is there already stays."""

    def files_of(self, key: str) -> bytes | None:
        """Return what was kept for a fingerprint; None if nothing was."""

    def flavors(self) -> KeptFlavors:
        """Return what is said of the flavors of the platform."""


@dataclass(frozen=True, slots=True)
class Survey:
    """Some versions.

    Attributes:
        records: Those that could be read.
        broken: Why each of the others could not.
    """

    records: list[Record] = field(default_factory=list)
    broken: list[TrainjobError] = field(default_factory=list)


class Registry:
    """The saved versions of one place.

    Args:
        place: Where they are kept.
    """

    def __init__(self, place: Place) -> None:
        self.place = place

    def add(self, record: R) -> R:
        """Save a record as the next version of its name, and return it with its number.

        Args:
            record: What to save; its version is not looked at.

        Raises:
            TrainjobError: If the place cannot be written.
        """
        kind, name = record.kind, record.name
        while True:
            version = self.place.last_number(kind, name) + 1
            numbered = record.model_copy(update={"version": version})
            values = numbered.model_dump(mode="json")
            with suppress(FileExistsError):  # another process was faster
                self.place.create(kind, name, version, {**values, _DIGEST: _digest(values)})
                return numbered

    def find(self, kind: Kind, reference: Reference) -> Record:
        """Return one version.

        Raises:
            RegistryError: If it is not there, naming what is, or if it is broken.
        """
        found = self.survey(kind, reference.name, reference.version, newest=True)
        for error in found.broken:
            raise error
        for record in found.records:
            return record
        raise self._unknown(kind, reference)

    def survey(
        self,
        kind: Kind,
        name: str | None = None,
        number: int | None = None,
        *,
        newest: bool = False,
    ) -> Survey:
        """Return the versions that were not deleted, by name and number.

        Args:
            kind: Of which kind.
            name: Of which name; None: of all.
            number: The only one that is asked for; None: all.
            newest: Whether of every name the latest alone is wanted.
        """
        found = Survey()
        kept = [k for k in self.place.versions(kind, name) if number in (None, k.number)]
        for _, versions in groupby(kept, lambda version: version.name):
            if newest:
                any(self._read_into(found, kind, version) for version in reversed(list(versions)))
            else:
                for version in versions:
                    self._read_into(found, kind, version)
        return found

    def users(self, record: Record) -> Survey:
        """Return the saved versions that were made from this one, and those that may have been."""
        used = f"{record.kind} {record}"
        found = self.survey("model")  # nothing else is made from saved versions
        return Survey([m for m in found.records if used in m.made_from], found.broken)

    def delete(self, kind: Kind, name: str, version: int) -> None:
        """Delete a version, be it broken; its number is not given again.

        Raises:
            TrainjobError: If the place cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.place.replace(kind, name, version, {"deleted": now})

    def _read_into(self, found: Survey, kind: Kind, version: Kept) -> bool:
        """Add a version, or why it cannot be read, and tell whether it is there at all."""
        try:
            record = self._read(kind, version)
        except TrainjobError as error:
            if error.retryable:  # the place is not there; no version is broken
                raise
            found.broken.append(error)
            return True
        if record is not None:
            found.records.append(record)
        return record is not None

    def _read(self, kind: Kind, version: Kept) -> Record | None:
        """Return a version; None if it was deleted.

        Raises:
            RegistryError: If the values are not those that were saved.
        """
        values = version.read()
        values = dict(values) if isinstance(values, dict) else values
        if isinstance(values, dict) and set(values) == {"deleted"}:
            return None
        name, number = version.name, version.number
        asked = f"the saved {kind} {name}@{number} in {self.place}"
        do = f"restore it from a backup, or `python -m flows {kind} delete {name}@{number} --force`"
        if not isinstance(values, dict):
            raise RegistryError(asked, "what has no keys and values", do)
        digest = values.pop(_DIGEST, None)  # absent: saved by a release that wrote none
        if digest not in (None, _digest(values)):
            raise RegistryError(asked, "other values than were saved", do)
        try:
            record = _MODELS[kind].model_validate(values)
        except ValidationError as error:
            wrong = problems_of(error, _MODELS[kind], values)[0]
            found = f"what is none ({wrong.field}: {wrong.found} in place of {wrong.asked})"
            raise RegistryError(asked, found, do) from error
        if (record.kind, record.name, record.version) != (kind, name, number):
            raise RegistryError(asked, f"the {record.kind} {record}", do)
        return record

    def _unknown(self, kind: Kind, reference: Reference) -> RegistryError:
        """Return the error that says which versions there are."""
        asked = f"the saved {kind} {str(reference)!r}"
        if versions := self.survey(kind, reference.name).records:
            found = f"only {', '.join(map(str, versions[-_MAX_NAMED:]))}"
            return RegistryError(asked, found, "name one of these, or register a new version")
        latest = self.survey(kind, newest=True).records
        names = ", ".join(record.name for record in latest[:_MAX_NAMED])
        found = f"only {names}" if names else f"no saved {kind}"
        do = f"register it with `python -m flows {kind} register {reference.name} ...`"
        return RegistryError(asked, f"{found} in {self.place}", do)


def _digest(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, default=str)  # of dates, which a hand may write
    return hashlib.sha256(text.encode()).hexdigest()
