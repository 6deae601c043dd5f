"""What a change to a job names, as it is when it is typed: absolute paths and saved versions.

A worker has another current folder, and tomorrow another version may be the latest one. What the
job had before is left as it is: a relative path of a form belongs to the worker's checkout. Called
by `trainjob.job_changes`.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainjob.job import TrainingJob
from trainjob.registry.records import DATA_KINDS
from trainjob.registry.references import UNRESOLVED

JobPath = tuple[str | int, ...]
"""Where a value of a job is, such as ``("inputs", 0, "url")``."""


def pinned(
    data: Mapping[str, Any], changed: Sequence[JobPath], job: TrainingJob, folder: Path
) -> dict[str, Any]:
    """Return the keys and values of a job with what `changed` names as `submit` would send it.

    Args:
        data: Keys and values that the job was read from; left unchanged.
        changed: Where they were changed.
        job: The job.
        folder: What relative paths are below.
    """
    pins = copy.deepcopy(dict(data))
    read = job.resolved(folder).model_dump(mode="json")
    is_version = False
    for path in _versions(pins):
        if _is_within(path, changed):
            is_version = True
            _take(pins, path, read)
    for path in _plain_texts(pins):
        if _is_within(path, changed):
            _put(pins, path, _at(read, path))
    if is_version and not pins.get("store") and read["store"]:
        pins["store"] = read["store"]  # that of the versions, which their urls do not say
    return pins


def _versions(data: Mapping[str, Any]) -> Iterator[JobPath]:
    """Yield where a job names a saved version and does not say what that is."""
    if isinstance(data.get("algorithm"), str):
        yield ("algorithm",)
    for i, channel in enumerate(data.get("inputs") or ()):
        for kind in DATA_KINDS:
            if channel.get(kind) is not None and not (channel.get("url") and channel.get("expect")):
                yield ("inputs", i, kind)


def _plain_texts(data: Mapping[str, Any]) -> Iterator[JobPath]:
    """Yield where a job has a url, or the name of a flavor."""
    channels = [(key, i) for key in ("inputs", "outputs") for i in range(len(data.get(key) or ()))]
    parts: list[JobPath] = [("algorithm", "code"), *channels, ("checkpoints",), ("logs",)]
    for path in (*((*part, "url") for part in parts), ("resources", "flavor")):
        value = _at(data, path)
        if isinstance(value, str) and value:
            yield path


def _is_within(path: JobPath, changed: Sequence[JobPath]) -> bool:
    return any(path[: len(change)] == change for change in changed)


def _take(data: dict[str, Any], path: JobPath, read: Mapping[str, Any]) -> None:
    """Put what a version is in place of its name."""
    if path == ("algorithm",):
        data["algorithm"] = read["algorithm"]
        return
    *place, kind = path
    channel = _at(data, tuple(place))
    channel |= {key: _at(read, (*place, key)) for key in (kind, *UNRESOLVED)}


def _at(data: Any, path: JobPath) -> Any:
    """Return the value at a place; None if there is none."""
    for part in path:
        if isinstance(part, str) and not isinstance(data, dict):
            return None
        data = data.get(part) if isinstance(part, str) else data[part]
    return data


def _put(data: dict[str, Any], path: JobPath, value: Any) -> None:
    *place, key = path
    _at(data, tuple(place))[key] = value
