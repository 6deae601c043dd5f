"""Device files that are not there, SIMULATED for processes that a test only starts.

Where a test is in the process itself, it puts another folder in the place of ``devices.DEV_DIR``.
Here every Python that has the variables does so when it starts. Nothing computes on such devices.
"""

from pathlib import Path

_CUSTOMIZE = """\
from pathlib import Path
from trainjob.launch import devices
devices.DEV_DIR = Path({folder!r})
"""


def simulated_device_files(folder: Path, *names: str) -> dict[str, str]:
    """Make files such as ``davinci0``; return the variables by which they are those of devices."""
    files = folder / "dev"
    files.mkdir(parents=True)
    for name in names:
        (files / name).touch()
    # Python imports a module of this name at its start (https://docs.python.org/3/library/site).
    (folder / "sitecustomize.py").write_text(_CUSTOMIZE.format(folder=str(files)))
    return {"PYTHONPATH": str(folder)}
