"""Changes to a job as a person types them: ``hyperparameters.lr=0.01``, ``inputs[0].url=…``.

What a value is follows from the job's model, and a key that is not there is refused, so that a typo
does not become a hyperparameter that no script reads.
"""

import copy
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainjob.env_rules import open_secret_problems
from trainjob.errors import JobError, Problem
from trainjob.job import TrainingJob
from trainjob.job_pins import JobPath, pinned
from trainjob.jobfile import read_value
from trainjob.registry.records import DATA_KINDS
from trainjob.registry.references import UNRESOLVED
from trainjob.registry.registry import Registry

_PART = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_PATH = re.compile(r"[^.\[\]]+(?:\.[^.\[\]]+|\[\d+\])*")
_OPEN = ("hyperparameters", "env", "secrets")
"""Keys below which a job may write names of its own."""


@dataclass(frozen=True, slots=True)
class _Change:
    path: JobPath
    text: str
    is_new: bool

    @property
    def field(self) -> str:
        return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in self.path)[1:]


def changed_job(
    data: Mapping[str, Any], changes: Sequence[str], source: str, registry: Registry | None = None
) -> tuple[TrainingJob, dict[str, Any]]:
    """Return a job with changes, and its keys and values as they were given, changed.

    What a change names is that of now: a relative path is below the current folder and becomes
    absolute, and a saved version or a flavor becomes what it is. All else stays as it was given.

    Args:
        data: Keys and values of the job; left unchanged.
        changes: ``PATH=VALUE`` each. A value is read as in a job file, or as text where the model
            wants text. A ``+`` in front adds a hyperparameter or variable that is not there.
        source: What the error message calls the job.
        registry: Where saved versions are; absent: in the folder of this machine.

    Raises:
        JobError: With all mistakes at once.
    """
    parsed = [_parse(text, source) for text in changes]
    problems = [problem for change in parsed for problem in _unknown(change, data)]
    if problems:
        raise JobError(source, problems)
    values: list[Any] = [read_value(change.text) for change in parsed]
    places = [change.path for change in parsed]
    try:
        return _read(data, _with(data, parsed, values, source), places, source, registry)
    except JobError as error:
        as_text = [
            change.text if change.field in _fields(error) and _may_be_text(change, value) else value
            for change, value in zip(parsed, values, strict=True)
        ]
        if as_text == values:
            raise
        try:
            return _read(data, _with(data, parsed, as_text, source), places, source, registry)
        except JobError:
            raise error from None  # what the value is read as at first, is what people mean


def _read(
    old: Mapping[str, Any],
    data: dict[str, Any],
    changed: Sequence[JobPath],
    source: str,
    registry: Registry | None,
) -> tuple[TrainingJob, dict[str, Any]]:
    if open_secrets := open_secret_problems(_changed_env(old.get("env"), data.get("env"))):
        raise JobError(source, open_secrets)
    job = TrainingJob.parse(data, source, registry)
    pins = pinned(data, changed, job, Path.cwd())
    return (job if pins == data else TrainingJob.parse(pins, source, registry)), pins


def _changed_env(old: Any, new: Any) -> dict[str, Any]:
    """Return the variables that are new; what the old job has can be read by everyone already."""
    if not isinstance(new, dict):
        return {}
    known = old.items() if isinstance(old, dict) else ()
    return {name: value for name, value in new.items() if (name, value) not in known}


def _parse(text: str, source: str) -> _Change:
    path, separator, value = text.partition("=")
    is_new = path.startswith("+")
    path = path.removeprefix("+").strip()
    if not separator or not _PATH.fullmatch(path):
        do = "write a key of the job file, = and a value, such as hyperparameters.lr=0.01"
        raise JobError(source, [Problem(path or "change", "KEY=VALUE", repr(text), do)])
    parts = tuple(name or int(index) for name, index in _PART.findall(path))
    return _Change(parts, value, is_new)


def _unknown(change: _Change, data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem if a name of the job's own is changed that it does not have."""
    if change.is_new or len(change.path) != 2 or change.path[0] not in _OPEN:
        return
    kind, name = str(change.path[0]), str(change.path[1])
    known = list(data.get(kind) or {})
    if kind == "hyperparameters":
        if isinstance(data.get("algorithm"), str):
            return  # its rules are in the registry, and asked when the job is read
        known += _ruled(data)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    do = f"did you mean {near[0]!r}? " if near else ""
    noun = "a hyperparameter" if kind == "hyperparameters" else "a variable"
    do += f"Write +{change.field}=… to add it"
    yield Problem(change.field, f"{noun} that the job has", repr(name), do, id="unknown-key")


def _ruled(data: Mapping[str, Any]) -> list[str]:
    algorithm = data.get("algorithm")
    rules = algorithm.get("hyperparameters") if isinstance(algorithm, dict) else None
    return [str(rule.get("name")) for rule in rules or () if isinstance(rule, dict)]


def _with(
    data: Mapping[str, Any], changes: Sequence[_Change], values: Sequence[Any], source: str
) -> dict[str, Any]:
    changed = copy.deepcopy(dict(data))
    for change, value in zip(changes, values, strict=True):
        _let_go(changed, change, value)
    problems = [
        problem
        for change, value in zip(changes, values, strict=True)
        for problem in _put(changed, change, value)
    ]
    if problems:
        raise JobError(source, problems)
    return changed


def _let_go(data: dict[str, Any], change: _Change, value: Any) -> None:
    """Take away what was read for a saved version that the job is not to name any more."""
    match change.path:
        case ("algorithm", key, *_) if key != "registered" and isinstance(
            data.get("algorithm"), dict
        ):
            data["algorithm"] |= {"registered": None}
        case ("inputs", int(index), ("url" | "dataset" | "model") as key) if value is not None:
            given = data.get("inputs")
            channel = given[index] if isinstance(given, list) and index < len(given) else None
            names = isinstance(channel, dict) and any(channel.get(kind) for kind in DATA_KINDS)
            if isinstance(channel, dict) and (names or key != "url"):
                channel |= UNRESOLVED | dict.fromkeys(DATA_KINDS)


def _put(data: dict[str, Any], change: _Change, value: Any) -> Iterator[Problem]:
    """Put a value at its place; groups that are not given yet are made."""
    place: Any = data
    for part, following in zip(change.path, (*change.path[1:], None), strict=True):
        is_fitting = isinstance(place, list if isinstance(part, int) else dict)
        if not is_fitting or (isinstance(part, int) and part >= len(place)):
            found = f"{len(place)} there" if isinstance(place, list) else f"{place!r} above it"
            do = "correct the key, or change what is above it as a whole"
            yield Problem(change.field, f"{part!r} in the job", found, do)
            return
        if following is None:
            place[part] = value
        else:
            if isinstance(place, dict) and place.get(part) is None:
                place[part] = {}
            place = place[part]


def _may_be_text(change: _Change, value: Any) -> bool:
    """Tell whether it may mean a text what is read as another value; null and lists never do."""
    return isinstance(value, bool | int | float) or not change.text


def _fields(error: JobError) -> set[str]:
    return {problem.field for problem in error.problems}
