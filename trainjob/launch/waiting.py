"""Waits for the end of an attempt that another process started."""

import json
import os
import select
from pathlib import Path

from trainjob.launch.processes import read_process
from trainjob.launch.rank_files import open_rank_file


def wait_for_supervisor(records_dir: Path, timeout_s: float) -> bool:
    """Wait until the supervisor of an attempt has ended, and with it everything below it.

    Args:
        records_dir: Where it recorded itself; nothing there counts as ended.
        timeout_s: How long to wait at most.

    Returns:
        Whether it has ended.
    """
    try:
        with open_rank_file(records_dir / "supervisor.json") as opened:
            record = json.loads(opened.read())
        process = os.pidfd_open(record["pid"])
    except (OSError, ValueError):
        return True
    try:
        found = read_process(record["pid"])
        # Its number may belong to another process by now; that one began at another time.
        if found is None or found.start_ticks != record["start_ticks"]:
            return True
        return bool(select.select([process], [], [], timeout_s)[0])
    finally:
        os.close(process)
