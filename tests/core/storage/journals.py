"""What a staging that was killed has finished, as it took down."""

from trainjob.storage.cache.folder import Cache


def journaled(cache: Cache) -> set[str]:
    """The files with a whole line in a journal."""
    lines = [
        line
        for journal in cache.incoming.glob("*/journal")
        for line in journal.read_text().splitlines(keepends=True)[1:]
    ]
    return {line.split('"')[1] for line in lines if line.endswith("\n")}


def num_noted_parts(cache: Cache) -> int:
    """How many parts of large files an interrupted copy has taken down."""
    return sum(len(file.read_text().splitlines()) - 1 for file in cache.incoming.glob("*/parts"))
