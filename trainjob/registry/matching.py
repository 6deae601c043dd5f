"""Compares the channels of a job with those that a saved algorithm declares, both ways.

ModelArts, "Creating a Training Job": training input and output must match the algorithm. Called
by `trainjob.registry.references`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trainjob.errors import Problem
from trainjob.registry.records import (
    DeclaredInput,
    DeclaredOutput,
    Record,
    SavedAlgorithm,
    SavedDataset,
)


def mapping_problems(
    algorithm: SavedAlgorithm, job: Mapping[str, Any], versions: Mapping[int, Record]
) -> list[Problem]:
    """Return where the channels of a job are not those that its algorithm declares.

    Args:
        algorithm: The algorithm of the job.
        job: Keys and values of the job.
        versions: The saved version that an input names, by its place among the inputs.
    """
    problems = []
    for key, declared in (("inputs", algorithm.inputs), ("outputs", algorithm.outputs)):
        if declared is not None:
            problems += _name_problems(str(algorithm), key, declared, _channels(job, key))
    known = {declared.name: declared for declared in algorithm.inputs or ()}
    for i, channel in _channels(job, "inputs").items():
        if declared_input := known.get(str(channel.get("name"))):
            problems += _source_problems(str(algorithm), i, declared_input, versions.get(i))
    return problems


def _channels(job: Mapping[str, Any], key: str) -> dict[int, dict[str, Any]]:
    given = job.get(key)
    channels = enumerate(given) if isinstance(given, list) else ()
    return {i: channel for i, channel in channels if isinstance(channel, dict)}


def _name_problems(
    algorithm: str,
    key: str,
    declared: Sequence[DeclaredInput | DeclaredOutput],
    channels: Mapping[int, dict[str, Any]],
) -> list[Problem]:
    problems = []
    names = [channel.name for channel in declared]
    word = key.removesuffix("s")
    for i, channel in channels.items():
        if channel.get("name") not in names:
            has = f"declares {', '.join(names)}" if names else f"has no {key}"
            found = f"the algorithm {algorithm}, which {has}"
            do = "rename it, or remove it" if names else "remove it, you need not set any"
            asked = f"the {word} {channel.get('name')!r}"
            problems.append(Problem(f"{key}[{i}].name", asked, found, do))
    given = [channel.get("name") for channel in channels.values()]
    for needed in declared:
        if needed.required and needed.name not in given:
            asked = f"the {word} {needed.name!r} ({needed.label}) of the algorithm {algorithm}"
            found = f"only {', '.join(map(str, given))}" if given else "none"
            do = f"add {{name: {needed.name}, url: ...}} to {key}"
            problems.append(Problem(key, asked, found, do))
    return problems


def _source_problems(
    algorithm: str, index: int, declared: DeclaredInput, version: Record | None
) -> list[Problem]:
    """Find data of a kind, or of a form, that the algorithm does not take."""
    kind = version.kind if version else "storage"
    field = f"inputs[{index}].{'url' if version is None else version.kind}"
    if kind not in declared.sources:
        found = "a url" if version is None else f"the saved {kind} {version}"
        words = {"storage": "url", "dataset": "dataset", "model": "model"}
        keys = " or ".join(f"{words[source]}: ..." for source in declared.sources)
        asked = f"{declared.name!r} from {' or '.join(declared.sources)}, as {algorithm} declares"
        return [Problem(field, asked, found, f"give {keys}")]
    if not isinstance(version, SavedDataset):
        return []
    problems = []
    for key in ("labelling", "format", "is_split"):
        wanted, has = getattr(declared, key), getattr(version, key)
        if wanted is not None and not _is_same(wanted, has):
            asked = f"a dataset with {key} {_shown(wanted)}, as {algorithm} declares"
            found = f"{version} with {'none said' if has is None else _shown(has)}"
            do = "choose another dataset, or register a version that says it"
            problems.append(Problem(field, asked, found, do))
    return problems


def _is_same(wanted: object, has: object) -> bool:
    """Compare what people wrote, in small or capital letters."""
    if isinstance(wanted, str) and isinstance(has, str):
        return wanted.casefold() == has.casefold()
    return wanted == has


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
