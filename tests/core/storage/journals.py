"""What a staging that was killed has finished, as its journal says."""

from trainjob.storage.cache.folder import Cache


def journaled(cache: Cache) -> set[str]:
    """The files with a whole line in a journal."""
    lines = [
        line
        for journal in cache.incoming.glob("*/journal")
        for line in journal.read_text().splitlines(keepends=True)[1:]
    ]
    return {line.split('"')[1] for line in lines if line.endswith("\n")}
