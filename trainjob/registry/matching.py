"""Compares the channels of a job with those that a saved algorithm declares, both ways.

ModelArts, "Creating a Training Job": training input and output must match the algorithm. Called
by `trainjob.registry.references`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainjob.declared_channels import DeclaredInput, DeclaredOutput
from trainjob.errors import Problem
from trainjob.registry.records import DATA_KINDS, Record, SavedDataset


@dataclass(frozen=True, slots=True)
class Declared:
    """The channels that an algorithm declares.

    Attributes:
        algorithm: The saved algorithm that it is, as ``NAME@VERSION``; None if it is none.
        inputs: What it reads; None: that is not declared.
        outputs: What it writes; None: that is not declared.
    """

    algorithm: str | None
    inputs: Sequence[DeclaredInput] | None
    outputs: Sequence[DeclaredOutput] | None

    def __str__(self) -> str:
        """Return what messages call the algorithm."""
        return f"the algorithm {self.algorithm}" if self.algorithm else "the algorithm"

    @property
    def who(self) -> str:
        """What messages say declares it."""
        return self.algorithm or "the algorithm"


def mapping_problems(
    declared: Declared, job: Mapping[str, Any], versions: Mapping[int, Record]
) -> list[Problem]:
    """Return where the channels of a job are not those that its algorithm declares.

    Args:
        declared: What the algorithm of the job declares.
        job: Keys and values of the job.
        versions: The saved version that an input names, by its place among the inputs, as far as
            it is there.
    """
    problems = []
    for key, wanted in (("inputs", declared.inputs), ("outputs", declared.outputs)):
        if wanted is not None:
            problems += _name_problems(declared, key, wanted, _channels(job, key))
    known = {each.name: each for each in declared.inputs or ()}
    for i, channel in _channels(job, "inputs").items():
        if declared_input := known.get(str(channel.get("name"))):
            found = _source_problems(declared.who, i, declared_input, channel, versions.get(i))
            problems += found
    return problems


def _channels(job: Mapping[str, Any], key: str) -> dict[int, dict[str, Any]]:
    given = job.get(key)
    channels = enumerate(given) if isinstance(given, list) else ()
    return {i: channel for i, channel in channels if isinstance(channel, dict)}


def _name_problems(
    algorithm: Declared,
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
            found = f"{algorithm}, which {has}"
            do = "rename it, or remove it" if names else "remove it, you need not set any"
            asked = f"the {word} {channel.get('name')!r}"
            problems.append(Problem(f"{key}[{i}].name", asked, found, do))
    given = [channel.get("name") for channel in channels.values()]
    for needed in declared:
        if needed.required and needed.name not in given:
            asked = f"the {word} {needed.name!r} ({needed.label}) of {algorithm}"
            found = f"only {', '.join(map(str, given))}" if given else "none"
            do = f"add {{name: {needed.name}, url: ...}} to {key}"
            problems.append(Problem(key, asked, found, do))
    return problems


def _source_problems(
    who: str,
    index: int,
    declared: DeclaredInput,
    channel: Mapping[str, Any],
    version: Record | None,
) -> list[Problem]:
    """Find data of a kind, or of a form, that the algorithm does not take."""
    # A version that is not there, or no more, is of the kind that the job says.
    kind = next((kind for kind in DATA_KINDS if channel.get(kind)), None)
    field = f"inputs[{index}].{kind or 'url'}"
    if (kind or "storage") not in declared.sources:
        found = f"the saved {kind} {version or channel[kind]}" if kind else "a url"
        words = {"storage": "url", "dataset": "dataset", "model": "model"}
        keys = " or ".join(f"{words[source]}: ..." for source in declared.sources)
        asked = f"{declared.name!r} from {' or '.join(declared.sources)}, as {who} declares"
        return [Problem(field, asked, found, f"give {keys}")]
    if not isinstance(version, SavedDataset):
        return []
    problems = []
    for key in ("labelling", "format", "is_split"):
        wanted, has = getattr(declared, key), getattr(version, key)
        if wanted is not None and not _is_same(wanted, has):
            asked = f"a dataset with {key} {_shown(wanted)}, as {who} declares"
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
