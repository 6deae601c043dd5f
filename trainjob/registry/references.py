"""Puts in place of saved versions what they are: the first step of reading a job.

``algorithm: digits@3`` becomes the algorithm, ``dataset: digits@2`` of an input gets its url and
fingerprint, so that a run uses exactly that version; a job that names no store gets the one that
its versions were registered with. Done on plain values, before they become a
`trainjob.job.TrainingJob`; what is wrong beside is found there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from trainjob.declared_channels import DeclaredInput, DeclaredOutput
from trainjob.errors import Problem
from trainjob.registry.claims import Claims
from trainjob.registry.matching import Declared, mapping_problems
from trainjob.registry.records import (
    DATA_KINDS,
    Kind,
    Record,
    Reference,
    RegistryError,
    SavedAlgorithm,
    SavedDataset,
    SavedModel,
)
from trainjob.registry.registry import Registry

UNRESOLVED = {"url": "", "expect": None, "unpack": "auto", "archive_names": "utf-8"}
"""What an input says that leaves all this to the version that it names."""

_ALGORITHM_STAND_IN = {"kind": "command", "code": {"url": "."}, "command": "true"}
_URL_STAND_IN = "missing"
_INPUTS: TypeAdapter[list[DeclaredInput] | None] = TypeAdapter(list[DeclaredInput] | None)
_OUTPUTS: TypeAdapter[list[DeclaredOutput] | None] = TypeAdapter(list[DeclaredOutput] | None)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A job without references.

    Attributes:
        data: Its keys and values. Where a version is not there something stands in for it, so
            that the rest of the job can be examined.
        problems: Why a reference could not be resolved, or does not fit.
    """

    data: Any
    problems: tuple[Problem, ...] = ()


def resolve_references(data: Any, registry: Registry, *, must_exist: bool = False) -> Resolved:
    """Return the job with what its references name; what has none is returned as it is.

    Args:
        data: Keys and values of a job; left unchanged. What is no mapping is let through.
        registry: Where the versions are.
        must_exist: Whether the versions have to be there of which the job says everything.
    """
    if not isinstance(data, dict):
        return Resolved(data)
    reading = _Reading(registry, must_exist=must_exist)
    resolved = dict(data)
    if "algorithm" in data:
        resolved["algorithm"] = reading.algorithm(data["algorithm"])
    given = data.get("inputs")
    if isinstance(given, list):
        resolved["inputs"] = [reading.channel(i, channel) for i, channel in enumerate(given)]
    problems = [*reading.problems, *reading.claims.problems]
    if declared := _declared(resolved.get("algorithm")):
        problems += mapping_problems(declared, resolved, reading.versions)
    if not data.get("store"):
        stores = _stores_of(reading.found)
        problems += _store_problems(stores)
        resolved |= {"store": next(iter(stores))} if stores else {}
    return Resolved(resolved, tuple(problems))


def _declared(algorithm: Any) -> Declared | None:
    """Return the channels that an algorithm declares; None if they cannot be read."""
    if not isinstance(algorithm, dict):
        return None
    try:
        return Declared(
            algorithm.get("registered"),
            _INPUTS.validate_python(algorithm.get("inputs")),
            _OUTPUTS.validate_python(algorithm.get("outputs")),
        )
    except ValidationError:
        return None  # told where the job is read


def _stores_of(versions: Iterable[Record]) -> dict[str | None, str]:
    """Return the stores that versions were registered with, each with one such version.

    None is the AWS_* environment, with which an ``s3://`` url was read where no store was named.
    """
    return {
        v.store: f"{v.kind} {v}"
        for v in versions
        if v.store is not None or _url_of(v).startswith("s3://")
    }


def _url_of(version: Record) -> str:
    if isinstance(version, SavedAlgorithm):
        return version.definition.code.url
    return cast(SavedDataset | SavedModel, version).url


def _store_problems(stores: Mapping[str | None, str]) -> list[Problem]:
    if len(stores) < 2:
        return []
    found = " and ".join(
        f"{'the AWS_* environment' if store is None else repr(store)} of {version}"
        for store, version in stores.items()
    )
    do = "set store to the one that reaches all urls of the job"
    return [Problem("store", "one store for the whole job", found, do)]


class _Reading:
    """Looks up the saved versions of one job.

    Args:
        registry: Where they are.
        must_exist: As in `resolve_references`.
    """

    def __init__(self, registry: Registry, *, must_exist: bool) -> None:
        self._registry = registry
        self.claims = Claims(registry, must_exist=must_exist)
        self.problems: list[Problem] = []
        self.found: list[Record] = []  # of what the job has a name alone
        self.versions: dict[int, Record] = {}  # by the place of the input that names it

    def algorithm(self, given: Any) -> Any:
        """Return the algorithm of the job, with the channels that it declares."""
        if isinstance(given, dict) and given.get("registered"):
            return self.claims.algorithm(given)
        if not isinstance(given, str):
            return given
        saved = self._find("algorithm", given, "algorithm")
        if saved is None:
            return _ALGORITHM_STAND_IN
        return cast(SavedAlgorithm, saved).in_a_job.model_dump(mode="json")

    def channel(self, index: int, channel: Any) -> Any:
        """Return an input with the url of the version that it names."""
        kinds = [k for k in DATA_KINDS if isinstance(channel, dict) and channel.get(k) is not None]
        if not kinds:
            return channel
        field, kind = f"inputs[{index}]", kinds[0]
        was_read = bool(channel.get("url") and channel.get("expect"))
        beside = DATA_KINDS if was_read else ("url", *DATA_KINDS)
        for other in beside:
            if channel.get(other) and other != kind:
                found = f"{other} beside it"
                do = "give one of url, dataset and model"
                self.problems.append(Problem(f"{field}.{kind}", repr(channel[kind]), found, do))
                return {**channel, "url": channel.get("url") or _URL_STAND_IN}
        if was_read:
            if record := self.claims.channel(kind, channel, field):
                self.versions[index] = record
            return channel
        found_record = self._find(kind, channel[kind], f"{field}.{kind}")
        if found_record is None:
            return {**channel, "url": _URL_STAND_IN}
        self.versions[index] = found_record
        version = cast(SavedDataset | SavedModel, found_record)
        self.problems += _problems_with(version, field, channel)
        return _with_version(channel, version)

    def _find(self, kind: Kind, text: object, field: str) -> Record | None:
        try:
            record = self._registry.find(kind, Reference.parse(str(text)))
        except RegistryError as error:
            self.problems.append(error.problem(field))
            return None
        self.found.append(record)
        return record


def _with_version(channel: Mapping[str, Any], version: SavedDataset | SavedModel) -> dict[str, Any]:
    resolved = {
        **channel,
        version.kind: str(version),
        "url": version.url,
        "unpack": version.unpack,
        "archive_names": version.archive_names,
    }
    is_streamed = channel.get("mode") == "stream"
    return resolved if is_streamed else resolved | {"expect": version.fingerprint}


def _problems_with(
    version: SavedDataset | SavedModel, field: str, channel: dict[str, Any]
) -> list[Problem]:
    """Find what the channel asks for that is not so with this version."""
    problems = []
    if channel.get("mode") == "stream":
        found = f"the saved {version.kind} {version}, whose files a run compares with it"
        do = f"use mode: link, or give the url {version.url!r} instead"
        problems.append(Problem(f"{field}.mode", "stream", found, do))
    fixed = {
        "expect": (None, version.fingerprint),
        "unpack": ("auto", version.unpack),
        "archive_names": ("utf-8", version.archive_names),
    }
    for key, (default, is_so) in fixed.items():
        asked = channel.get(key, default)
        if asked not in (default, is_so):
            found = f"{is_so} with the saved {version.kind} {version}"
            problems.append(Problem(f"{field}.{key}", repr(asked), found, f"remove {key}"))
    return problems
