"""Which files of a checkpoint folder belong together, and which of them are ready to be sent.

``step-NNNNNNNN/`` with its marker is what `trainjob.checkpoint` writes: it counts as a whole, at
once. What other programs write, without the marker also under such a name, counts folder by folder
when it has not changed for a while, and in the checkpoint folder itself file by file. So do the
files of a folder that never rests, such as one with a log beside the weights.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

from trainjob.storage.claim import is_bookkeeping
from trainjob.storage.listing import Entry
from trainjob.storage.live_tree import Look, is_temporary

MARKER = "COMPLETE"
_STEP = re.compile(r"step-(\d{8,})")
_RESTLESS_PASSES = 10  # five minutes: a large checkpoint of one file takes its time


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
    """Return the last step of `trainjob.checkpoint` that has a folder among `paths`."""
    return max(marked_steps(paths).values(), default=None)


def marked_steps(paths: Iterable[str]) -> dict[str, int]:
    """Return the steps of `trainjob.checkpoint` whose marker is among `paths`, by their folders."""
    return {
        unit_of(path): step
        for path in paths
        if (step := step_of(path)) is not None and path == f"{unit_of(path)}/{MARKER}"
    }


class Restlessness:
    """Finds the folders of other programs in which the same files change at every pass.

    One in which files come and go is perhaps a checkpoint that is being written.
    """

    def __init__(self) -> None:
        self._num_passes: Counter[str] = Counter()
        self._paths: dict[str, list[str]] = {}

    def note(self, look: Look, before: Look) -> None:
        """Hear what the checkpoint folder holds at a pass, and what it held some seconds ago."""
        units, units_before = _units(look), _units(before)
        paths = {unit: [entry.path for entry in entries] for unit, entries in units.items()}
        changing = [
            unit
            for unit, entries in units.items()
            if units_before.get(unit) != entries
            and self._paths.get(unit, paths[unit]) == paths[unit]
        ]
        self._num_passes = Counter({unit: self._num_passes[unit] + 1 for unit in changing})
        self._paths = paths

    def units(self) -> Collection[str]:
        """Return the folders of which each file counts by itself now."""
        return {unit for unit, count in self._num_passes.items() if count >= _RESTLESS_PASSES}


def ready_files(
    look: Look, again: Look, before: Look, *, is_final: bool, restless: Collection[str] = ()
) -> list[list[Entry]]:
    """Return the files that can be sent, in groups of what is worth most first.

    These are the last complete step, all files of other programs, and the other complete steps.

    Args:
        look: What the folder holds.
        again: What it held right after that. A step that is saved anew is exchanged at once, so
            one look may show some files of the old one and some of the new one.
        before: What it held some seconds ago.
        is_final: Whether nobody writes to it any longer.
        restless: The folders of other programs that are not waited for as a whole.
    """
    steps: list[tuple[int, list[Entry]]] = []
    others: list[Entry] = []
    units, units_again, units_before = _units(look), _units(again), _units(before)
    odd_units = {unit_of(path) for path in look.odd}
    for unit, entries in units.items():
        is_steady = units_again.get(unit) == entries
        step = step_of(entries[0].path)
        if step is not None and f"{unit}/{MARKER}" in look.files:
            if is_steady and unit not in odd_units:
                steps.append((step, entries))
        elif is_steady and (is_final or units_before.get(unit) == entries):
            others += entries
        elif unit in restless:
            others += [entry for entry in entries if before.has(entry) and again.has(entry)]
    groups = [entries for _, entries in sorted(steps, key=lambda found: -found[0])]
    return [group for group in (*groups[:1], others, *groups[1:]) if group]


def has_unsettled(look: Look, before: Look) -> bool:
    """Say whether something changed that is ready as soon as it stays as it is."""
    ready = ready_files(look, look, before, is_final=False)
    return ready != ready_files(look, look, before, is_final=True)


def deleted_files(saved: Sequence[str], look: Look, before: Look) -> list[str]:
    """Return those of the saved files that the run has deleted.

    Of a step with its marker only all files together count, since one that is half deleted may have
    been the best. From an empty folder nothing was deleted: it is more likely lost.
    """
    if not look.files:
        return []
    here = look.files.keys() | before.files.keys()
    units_here = {unit_of(path) for path in here}
    marked = marked_steps(saved)
    return [
        path
        for path in saved
        if path not in here and not (unit_of(path) in marked and unit_of(path) in units_here)
    ]


def _units(look: Look) -> dict[str, list[Entry]]:
    units: dict[str, list[Entry]] = defaultdict(list)
    for path in sorted(look.files):
        units[unit_of(path)].append(look.files[path])
    return units
