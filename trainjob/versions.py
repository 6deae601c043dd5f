"""Which software made a run: for its receipt, without importing any of it."""

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("trainjob", "prefect", "torch", "mpi4py", "numpy")


def installed_versions() -> dict[str, str]:
    """Return the versions of Python, this package and what trains with it, where installed."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
