"""Which files of a checkpoint folder belong together, and which of them are ready to be sent.

``step-NNNNNNNN/`` is what `trainjob.checkpoint` writes: it counts as a whole, when its marker is
there. What other programs write counts folder by folder when it has not changed for a while, and
in the checkpoint folder itself file by file.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from trainjob.storage.claim import is_bookkeeping
from trainjob.storage.listing import Entry
from trainjob.storage.live_tree import Look, is_temporary

MARKER = "COMPLETE"
_STEP = re.compile(r"step-(\d{8,})")


def is_wanted(path: str) -> bool:
    """Say whether a file of a checkpoint folder is to be saved once it is ready."""
    is_of_step = step_of(path) is not None
    return is_of_step or not (is_temporary(path) or is_bookkeeping(path))


def step_of(path: str) -> int | None:
    """Return the step whose folder a file is in; None if it is not in one."""
    top, is_in_folder, _ = path.partition("/")
    match = _STEP.fullmatch(top)
    return int(match[1]) if match and is_in_folder else None


def unit_of(path: str) -> str:
    """Return the name of what the file is saved together with: a folder, or the file itself."""
    if step_of(path) is not None:
        return path.partition("/")[0]
    return path.rpartition("/")[0] or path


def newest_step(paths: Iterable[str]) -> int | None:
    """Return the last step that has a folder among `paths`."""
    return max((step for path in paths if (step := step_of(path)) is not None), default=None)


def ready_files(look: Look, again: Look, before: Look, *, is_final: bool) -> list[list[Entry]]:
    """Return the files that can be sent, in groups of what is worth most first.

    These are the last complete step, all files of other programs, and the other complete steps.

    Args:
        look: What the folder holds.
        again: What it held right after that. A step that is saved anew is exchanged at once, so
            one look may show some files of the old one and some of the new one.
        before: What it held some seconds ago.
        is_final: Whether nobody writes to it any longer.
    """
    steps: list[tuple[int, list[Entry]]] = []
    others: list[Entry] = []
    units, units_again, units_before = _units(look), _units(again), _units(before)
    odd_units = {unit_of(path) for path in look.odd}
    for unit, entries in units.items():
        if units_again.get(unit) != entries:
            continue
        step = step_of(entries[0].path)
        if step is None and (is_final or units_before.get(unit) == entries):
            others += entries
        elif step is not None and f"{unit}/{MARKER}" in look.files and unit not in odd_units:
            steps.append((step, entries))
    groups = [entries for _, entries in sorted(steps, key=lambda found: -found[0])]
    return [group for group in (*groups[:1], others, *groups[1:]) if group]


def has_unsettled(look: Look, before: Look) -> bool:
    """Say whether something changed that is ready as soon as it stays as it is."""
    ready = ready_files(look, look, before, is_final=False)
    return ready != ready_files(look, look, before, is_final=True)


def deleted_files(saved: Sequence[str], look: Look, before: Look) -> list[str]:
    """Return those of the saved files that the run has deleted.

    Of a step only all files together count, since one that is half deleted may have been the best.
    From an empty folder nothing was deleted: it is more likely lost.
    """
    if not look.files:
        return []
    here = look.files.keys() | before.files.keys()
    units_here = {unit_of(path) for path in here}
    return [
        path
        for path in saved
        if path not in here and (step_of(path) is None or unit_of(path) not in units_here)
    ]


def _units(look: Look) -> dict[str, list[Entry]]:
    units: dict[str, list[Entry]] = defaultdict(list)
    for path in sorted(look.files):
        units[unit_of(path)].append(look.files[path])
    return units
