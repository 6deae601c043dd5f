"""Puts the metrics of a run among its outputs, where people look for them."""

import shutil
from pathlib import Path

FOLDER = "metrics"
"""The folder below the first output that gets them."""

_PUBLISHED = "published.txt"


def publish_metrics(metrics_dir: Path, output_dir: Path) -> None:
    """Copy the files of `metrics_dir` to the folder `metrics` of an output.

    What the script wrote there itself stays as it is, and its links are not followed: they may lead
    to what a script in a sandbox cannot write itself. An output that the script left empty stays
    empty, so that it is not taken for a result. Doing it again brings what has changed.

    Args:
        metrics_dir: The metrics of the last attempt, which has those of all; missing in a run
            without metrics. What was copied is noted beside it.
        output_dir: The folder of the output.
    """
    wrote_something = output_dir.is_dir() and any(p.name != FOLDER for p in output_dir.iterdir())
    target = output_dir / FOLDER
    if not metrics_dir.is_dir() or not wrote_something or target.is_symlink():
        return
    note = metrics_dir.parent / _PUBLISHED
    ours = set(note.read_text(encoding="utf-8").splitlines()) if note.exists() else set()
    target.mkdir(exist_ok=True)
    ours |= {file.name for file in metrics_dir.iterdir() if not (target / file.name).exists()}
    note.write_text("\n".join(sorted(ours)), encoding="utf-8")
    for file in metrics_dir.iterdir():
        if file.name in ours and not (target / file.name).is_symlink():
            shutil.copyfile(file, target / file.name)
