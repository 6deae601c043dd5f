"""Waits for the end of an attempt that another process started."""

import json
import os
import select
from pathlib import Path


def wait_for_supervisor(records_dir: Path, timeout_s: float) -> bool:
    """Wait until the supervisor of an attempt has ended, and with it everything below it.

    Args:
        records_dir: Where it recorded itself; nothing there counts as ended.
        timeout_s: How long to wait at most.

    Returns:
        Whether it has ended.
    """
    try:
        record = json.loads((records_dir / "supervisor.json").read_text(encoding="utf-8"))
        process = os.pidfd_open(record["pid"])
    except (OSError, ValueError):
        return True
    try:
        # Its number may belong to another process by now; that one began at another time.
        if _start_ticks(record["pid"]) != record["start_ticks"]:
            return True
        return bool(select.select([process], [], [], timeout_s)[0])
    finally:
        os.close(process)


def _start_ticks(pid: int) -> int | None:
    """Return when a process began, in clock ticks since the machine started (proc(5))."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[19])
