"""The command line that starts the ranks, as a pure function of the launch.

The words of the program are not on it: mpirun takes a lone ``:`` among them for its own, so ranks
read them from the launch's order file and they arrive as they are.
"""

import sys
from pathlib import Path

from trainjob.launch.launch import Launch
from trainjob.launch.mpi import Mpirun

_BOOTSTRAP = Path(__file__).with_name("bootstrap.py")
_MPICH = Mpirun(path="mpirun", family="mpich")


def launcher_argv(launch: Launch, mpirun: Mpirun | None = None) -> list[str]:
    """Return the command that starts all ranks of `launch`.

    Args:
        launch: What to start.
        mpirun: Which mpirun to use if the launcher is mpi; None: the one of MPICH on PATH.
    """
    python = str(launch.python or sys.executable)
    rank = [python, "-u", str(_BOOTSTRAP), str(launch.order_file)]
    if launch.launcher == "torchrun":
        return [*_torchrun(launch, python), *rank]
    if launch.launcher == "mpi":
        return [*_mpirun(launch, mpirun or _MPICH), *rank]
    return rank


def _torchrun(launch: Launch, python: str) -> list[str]:
    # -P: without it the code folder, where this runs, comes first on sys.path, and a user's
    # logging.py breaks torchrun. Loopback: one node needs no name that resolves.
    return [
        *(python, "-P", "-m", "torch.distributed.run"),
        *("--nnodes", "1"),
        *("--nproc-per-node", str(launch.world_size)),
        *("--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", "localhost:0"),
        *("--rdzv-id", launch.run_id),
        *("--local-addr", "127.0.0.1"),
        *("--max-restarts", "0"),
        *("--monitor-interval", "0.1"),
        # Where it otherwise leaves a temporary folder a run for ever (torch 2.13).
        *("--log-dir", str(launch.records_dir / "torchrun")),
        "--no-python",
    ]


def _mpirun(launch: Launch, mpirun: Mpirun) -> list[str]:
    number = ("-n", str(launch.world_size))
    if mpirun.family == "openmpi":
        # It binds every rank to one core, and refuses more ranks than cores, unless told.
        return [mpirun.path, "--oversubscribe", "--bind-to", "none", *number]
    # fork: what else hydra finds on the machine (ssh, a batch system) has no part in one node.
    return [mpirun.path, "-launcher", "fork", *number]
