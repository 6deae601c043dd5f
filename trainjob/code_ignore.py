"""What of a code folder is not code: caches, and what its file ``.trainignore`` names.

ModelArts, "Creating an Algorithm": the code directory "cannot contain irrelevant files or
directories". The file has patterns as ``.gitignore`` has them. Asked by `trainjob.source` for plain
folders; what comes from git, an archive or a store was chosen before.
"""

from pathlib import Path

from pathspec import GitIgnoreSpec

from trainjob.code_limits import refused
from trainjob.storage.listing import Listing

IGNORE_FILE = ".trainignore"
_NEVER_CODE = (".git", "__pycache__", f"/{IGNORE_FILE}")


def without_ignored(folder: Path, whole: Listing) -> Listing:
    """Return what of a folder is code.

    Args:
        folder: The folder.
        whole: Everything in it.

    Raises:
        SourceError: If its ``.trainignore`` cannot be understood.
        OSError: If that cannot be read.
    """
    file = folder / IGNORE_FILE
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        ignored = GitIgnoreSpec.from_lines([*lines, *_NEVER_CODE])
    except ValueError as error:  # also: no UTF-8
        asked = f"patterns as in .gitignore in {str(file)!r}"
        raise refused(asked, str(error), "correct the line") from error
    return Listing(
        tuple(entry for entry in whole.files if not ignored.match_file(entry.path)),
        tuple(path for path in whole.folders if not ignored.match_file(f"{path}/")),
    )
