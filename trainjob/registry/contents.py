"""What is in a version of data, in a few lines: kinds of files, splits, classes, samples.

Found from the paths of the files and, of formats that have one sample a line, from the number of
lines; nothing else is read. Part of the record of a saved version (`trainjob.registry.records`).
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from pydantic import Field

from trainjob.spec import Spec
from trainjob.storage.failures import local_failures

Split = Literal["train", "val", "test"]

OTHER_ENDINGS = "others"
_MAX_ENDINGS = 20
_MAX_CLASSES = 200
_MAX_READ_BYTES = 64 << 20
_ENDING = re.compile(r"\.[a-z0-9_]{1,16}")
_IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_SAMPLE_A_LINE = {".jsonl", ".manifest"}
"""ModelArts' manifest, its format "Default", has one JSON object a sample."""
_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


class ListedFile(NamedTuple):
    """One file of a saved version: its path with ``/`` between the parts, size and digest."""

    path: str
    size_bytes: int
    sha256: str


class Amount(Spec):
    """How much there is of something."""

    num_files: int
    """Number of files."""

    size_bytes: int
    """Their size."""


class Contents(Spec):
    """What is in a version of data."""

    endings: dict[str, Amount] = Field(default={})
    """Files by the ending of their names, such as `.png`, most files first; `others` are those of
    no ending or of rarer ones."""

    splits: dict[Split, int] = Field(default={})
    """Number of files in folders that are called train, val or test, or a longer form of these."""

    num_classes: int | None = None
    """Number of classes, if all images lie in folders that are classes: `CLASS/x.png`, or
    `train/CLASS/x.png` and so on."""

    classes: dict[str, int] = Field(default={})
    """Number of images of every class; absent above 200 classes."""

    num_samples: int | None = None
    """Number of images in folders of classes, else of lines in .jsonl and .manifest files; absent
    if there are neither, or more than 64 MiB of such lines."""


def contents_of(files: Sequence[ListedFile], folder: Path) -> Contents:
    """Return what is in a folder.

    Args:
        files: All its files.
        folder: Where they are, on this machine.

    Raises:
        StoreError: If a file cannot be read.
    """
    by_class = _images_by_class(files)
    num_samples = sum(by_class.values()) if by_class else _num_lines(files, folder)
    return Contents(
        endings=_endings(files),
        splits=_splits(files),
        num_classes=len(by_class) or None,
        classes=by_class if len(by_class) <= _MAX_CLASSES else {},
        num_samples=num_samples,
    )


def _ending(path: str) -> str:
    ending = PurePosixPath(path).suffix.lower()
    return ending if _ENDING.fullmatch(ending) else OTHER_ENDINGS


def _endings(files: Sequence[ListedFile]) -> dict[str, Amount]:
    counts, sizes = Counter[str](), Counter[str]()
    for file in files:
        counts[_ending(file.path)] += 1
        sizes[_ending(file.path)] += file.size_bytes
    named = [(e, n) for e, n in counts.most_common() if e != OTHER_ENDINGS][:_MAX_ENDINGS]
    amounts = {e: Amount(num_files=n, size_bytes=sizes[e]) for e, n in named}
    num_others = len(files) - sum(n for _, n in named)
    if num_others:
        size_bytes = sum(sizes.values()) - sum(sizes[e] for e in amounts)
        amounts[OTHER_ENDINGS] = Amount(num_files=num_others, size_bytes=size_bytes)
    return amounts


def _splits(files: Sequence[ListedFile]) -> dict[Split, int]:
    counts = Counter[Split]()
    for file in files:
        folders = file.path.split("/")[:-1]
        if split := next((_SPLITS[f.lower()] for f in folders if f.lower() in _SPLITS), None):
            counts[split] += 1
    return {split: counts[split] for split in ("train", "val", "test") if counts[split]}


def _images_by_class(files: Sequence[ListedFile]) -> dict[str, int]:
    """Return the number of images of every class; nothing if folders are not classes."""
    images = [file.path.split("/") for file in files if _ending(file.path) in _IMAGES]
    above = len(_folders_of_all(images))
    counts = Counter[str]()
    for parts in images:
        below = parts[above:-1]
        if below and below[0].lower() in _SPLITS:
            below = below[1:]
        if len(below) != 1:
            return {}
        counts[below[0]] += 1
    return dict(sorted(counts.items())) if len(counts) > 1 else {}


def _folders_of_all(paths: Sequence[Sequence[str]]) -> list[str]:
    """Return the folders that all paths begin with, up to one that is a split."""
    common = []
    for names in zip(*(parts[:-1] for parts in paths), strict=False):
        if len(set(names)) > 1 or names[0].lower() in _SPLITS:
            break
        common.append(names[0])
    return common


def _num_lines(files: Sequence[ListedFile], folder: Path) -> int | None:
    """Count the samples of files with one a line; None if there are none or they are too large."""
    chosen = [file for file in files if _ending(file.path) in _SAMPLE_A_LINE]
    if not chosen or sum(file.size_bytes for file in chosen) > _MAX_READ_BYTES:
        return None
    return sum(1 for file in chosen for _ in _lines(folder / file.path))


def _lines(file: Path) -> Iterator[bytes]:
    with local_failures(str(file)), file.open("rb") as lines:
        yield from (line for line in lines if line.strip())
