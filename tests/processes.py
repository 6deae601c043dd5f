"""The processes of a run, found by the mark that they carry."""

from pathlib import Path


def marked_processes(run_id: str) -> dict[int, str]:
    """Return the command lines of all living processes of a run by their pid."""
    mark = f"TRAINJOB_RUN_ID={run_id}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found
