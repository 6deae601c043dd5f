"""Puts in place of saved versions what they are: the first step of reading a job.

``algorithm: digits@3`` becomes the algorithm, ``dataset: digits@2`` of an input gets its url and
fingerprint, so that a run uses exactly that version; a job that names no store gets the one that
its versions were registered with. Done on plain values, before they become a
`trainjob.job.TrainingJob`; what is wrong beside is found there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from trainjob.errors import Problem
from trainjob.registry.matching import mapping_problems
from trainjob.registry.records import (
    Kind,
    Record,
    Reference,
    RegistryError,
    SavedAlgorithm,
    SavedDataset,
    SavedModel,
)
from trainjob.registry.registry import Registry

DATA_KINDS: tuple[Kind, ...] = ("dataset", "model")
"""What an input channel may name."""

_ALGORITHM_STAND_IN = {"kind": "command", "code": {"url": "."}, "command": "true"}
_URL_STAND_IN = "missing"


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


def resolve_references(data: Any, registry: Registry) -> Resolved:
    """Return the job with what its references name; what has none is returned as it is.

    Args:
        data: Keys and values of a job; left unchanged. What is no mapping is let through.
        registry: Where the versions are.
    """
    if not isinstance(data, dict):
        return Resolved(data)
    problems: list[Problem] = []
    resolved = dict(data)
    saved = None
    if isinstance(data.get("algorithm"), str):
        resolved["algorithm"] = _ALGORITHM_STAND_IN
        saved = _find(registry, "algorithm", data["algorithm"], "algorithm", problems)
    if isinstance(saved, SavedAlgorithm):
        definition = saved.definition.model_copy(update={"registered": str(saved)})
        resolved["algorithm"] = definition.model_dump(mode="json")
    given = data.get("inputs")
    versions: dict[int, Record] = {}
    if isinstance(given, list):
        resolved["inputs"] = [
            _resolved_channel(registry, i, channel, versions, problems)
            for i, channel in enumerate(given)
        ]
    if isinstance(saved, SavedAlgorithm):
        problems += mapping_problems(saved, resolved, versions)
    if not data.get("store"):
        stores = _stores_of([*([saved] if saved else []), *versions.values()])
        problems += _store_problems(stores)
        resolved |= {"store": next(iter(stores))} if stores else {}
    return Resolved(resolved, tuple(problems))


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


def _find(
    registry: Registry, kind: Kind, text: object, field: str, problems: list[Problem]
) -> Record | None:
    try:
        return registry.find(kind, Reference.parse(str(text)))
    except RegistryError as error:
        problems.append(error.problem(field))
        return None


def _resolved_channel(
    registry: Registry,
    index: int,
    channel: Any,
    versions: dict[int, Record],
    problems: list[Problem],
) -> Any:
    """Return an input with the url of the version that it names, which is put into `versions`."""
    kinds = [k for k in DATA_KINDS if isinstance(channel, dict) and channel.get(k) is not None]
    if not kinds or (channel.get("url") and channel.get("expect")):
        return channel  # there is none, or it was resolved before
    field = f"inputs[{index}]"
    for other in ("url", *DATA_KINDS):
        if channel.get(other) and other != kinds[0]:
            found = f"{other} beside it"
            do = "give one of url, dataset and model"
            problems.append(Problem(f"{field}.{kinds[0]}", repr(channel[kinds[0]]), found, do))
            return {**channel, "url": channel.get("url") or _URL_STAND_IN}
    record = _find(registry, kinds[0], channel[kinds[0]], f"{field}.{kinds[0]}", problems)
    if record is None:
        return {**channel, "url": _URL_STAND_IN}
    versions[index] = record
    version = cast(SavedDataset | SavedModel, record)
    problems += _problems_with(version, field, channel)
    resolved = {
        **channel,
        kinds[0]: str(version),
        "url": version.url,
        "unpack": version.unpack,
        "archive_names": version.archive_names,
    }
    return (
        resolved if channel.get("mode") == "stream" else resolved | {"expect": version.fingerprint}
    )


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
