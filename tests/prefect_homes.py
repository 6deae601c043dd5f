"""Homes of Prefect whose database has its tables already.

The migrations of an empty database are more than half of the processor time that the start of a
server takes, and each of a dozen servers of a session would make them.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

_shared: Path | None = None


def share_in(folder: Path) -> None:
    """Say where all processes of this session keep the database that they copy."""
    global _shared  # noqa: PLW0603 - what stands for a fixture where a class asks
    _shared = folder


def fill_home(home: Path, name: str = "prefect.db") -> Path:
    """Put a database without any content into a home, if one is shared; return the home."""
    home.mkdir(parents=True, exist_ok=True)
    if _shared is not None:
        shutil.copy(_migrated(_shared), home / name)
    return home


def _migrated(folder: Path) -> Path:
    database = folder / "prefect-home" / "prefect.db"
    with (folder / "prefect-home.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not database.exists():
            unfinished = folder / "prefect-home.unfinished"
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
            env = os.environ | {"PREFECT_HOME": str(unfinished)}
            subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
            unfinished.rename(database.parent)
    return database
