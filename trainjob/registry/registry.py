"""Saved versions by name and number, wherever they are kept.

A place keeps the values of each version; `trainjob.registry.folder` has the one that needs no
server. What a version is, which number is next and who uses whom is decided here.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
_MODELS: dict[Kind, type[Record]] = {
    "algorithm": SavedAlgorithm,
    "dataset": SavedDataset,
    "model": SavedModel,
}


class Place(Protocol):
    """Keeps the values of versions. Every method raises errors of `trainjob.errors` only."""

    def __str__(self) -> str:
        """Return what people call the place."""

    def names(self, kind: Kind) -> list[str]:
        """Return all names of which there ever was a version."""

    def numbers(self, kind: Kind, name: str) -> list[int]:
        """Return all numbers that were ever given, in order."""

    def read(self, kind: Kind, name: str, number: int) -> Any:
        """Return the values of a version.

        Raises:
            RegistryError: If they cannot be read.
        """

    def create(self, kind: Kind, name: str, number: int, values: dict[str, Any]) -> None:
        """Keep the values of a new version, whole or not at all.

        Raises:
            FileExistsError: If there is one of that number, which stays as it is.
        """

    def replace(self, kind: Kind, name: str, number: int, values: dict[str, Any]) -> None:
        """Keep other values under a number that was given."""


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
            version = max(self.place.numbers(kind, name), default=0) + 1
            numbered = record.model_copy(update={"version": version})
            with suppress(FileExistsError):  # another process was faster
                self.place.create(kind, name, version, numbered.model_dump(mode="json"))
                return numbered

    def find(self, kind: Kind, reference: Reference) -> Record:
        """Return one version.

        Raises:
            RegistryError: If it is not there, naming what is.
        """
        numbers = self.place.numbers(kind, reference.name)
        if reference.version is not None:
            numbers = [number for number in numbers if number == reference.version]
        for number in reversed(numbers):
            if record := self._read(kind, reference.name, number):
                return record
        raise self._unknown(kind, reference)

    def survey(self, kind: Kind, name: str) -> Survey:
        """Return all versions of one name that were not deleted, the oldest first."""
        found = Survey()
        for number in self.place.numbers(kind, name):
            self._read_into(found, kind, name, number)
        return found

    def latest(self, kind: Kind) -> Survey:
        """Return the latest version of every name."""
        found = Survey()
        for name in sorted(self.place.names(kind)):
            numbers = reversed(self.place.numbers(kind, name))
            any(self._read_into(found, kind, name, number) for number in numbers)
        return found

    def versions(self, kind: Kind, name: str) -> list[Record]:
        """Return the versions of one name that can be read, the oldest first."""
        return self.survey(kind, name).records

    def names(self, kind: Kind) -> list[str]:
        """Return the names whose latest version can be read."""
        return [record.name for record in self.latest(kind).records]

    def users(self, record: Record) -> list[str]:
        """Return the saved versions that were made from this one, as ``KIND NAME@VERSION``."""
        used = f"{record.kind} {record}"
        return [
            f"{kind} {other}"
            for kind in _MODELS
            for name in sorted(self.place.names(kind))
            for other in self.versions(kind, name)
            if used in other.made_from
        ]

    def delete(self, record: Record) -> None:
        """Delete one version; its number is not given again.

        Raises:
            TrainjobError: If the place cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.place.replace(record.kind, record.name, record.version, {"deleted": now})

    def _read_into(self, found: Survey, kind: Kind, name: str, version: int) -> bool:
        """Add a version, or why it cannot be read, and tell whether it is there at all."""
        try:
            record = self._read(kind, name, version)
        except TrainjobError as error:
            if error.retryable:  # the place is not there; no version is broken
                raise
            found.broken.append(error)
            return True
        if record is not None:
            found.records.append(record)
        return record is not None

    def _read(self, kind: Kind, name: str, version: int) -> Record | None:
        """Return a version; None if it was deleted.

        Raises:
            RegistryError: If the values are not those that were saved.
        """
        values = self.place.read(kind, name, version)
        if isinstance(values, dict) and set(values) == {"deleted"}:
            return None
        asked = f"the saved {kind} {name}@{version} in {self.place}"
        do = "restore it from a backup, or take it away"
        if not isinstance(values, dict):
            raise RegistryError(asked, "what has no keys and values", do)
        try:
            record = _MODELS[kind].model_validate(values)
        except ValidationError as error:
            wrong = problems_of(error, _MODELS[kind], values)[0]
            found = f"what is none ({wrong.field}: {wrong.found} in place of {wrong.asked})"
            raise RegistryError(asked, found, do) from error
        if (record.kind, record.name, record.version) != (kind, name, version):
            raise RegistryError(asked, f"the {record.kind} {record}", do)
        return record

    def _unknown(self, kind: Kind, reference: Reference) -> RegistryError:
        """Return the error that says which versions there are."""
        asked = f"the saved {kind} {str(reference)!r}"
        if versions := self.versions(kind, reference.name):
            found = f"only {', '.join(map(str, versions[-_MAX_NAMED:]))}"
            return RegistryError(asked, found, "name one of these, or register a new version")
        names = ", ".join(self.names(kind)[:_MAX_NAMED])
        found = f"only {names}" if names else f"no saved {kind}"
        do = f"register it with `python -m flows {kind} register {reference.name} ...`"
        return RegistryError(asked, f"{found} in {self.place}", do)
