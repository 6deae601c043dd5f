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
_MSRUN_PORT = 8118


def launcher_argv(
    launch: Launch, mpirun: Mpirun | None = None, port: int | None = None
) -> list[str]:
    """Return the command that starts all ranks of `launch`.

    Args:
        launch: What to start.
        mpirun: Which mpirun to use if the launcher is mpi; None: the one of MPICH on PATH.
        port: A free port for the scheduler of msrun; None: the one that msrun would take.
    """
    python = str(launch.python or sys.executable)
    rank = [python, "-u", str(_BOOTSTRAP), str(launch.order_file)]
    if launch.launcher == "torchrun":
        return [*_torchrun(launch, python), *rank]
    if launch.launcher == "mpi":
        return [*_mpirun(launch, mpirun or _MPICH), *rank]
    if launch.launcher == "msrun":
        # It takes no other program than this name; PATH has the folder of ours first.
        return [*_msrun(launch, python, port or _MSRUN_PORT), "python3", *rank[1:]]
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


def _msrun(launch: Launch, python: str, port: int) -> list[str]:
    number = str(launch.world_size)
    return [
        *(python, "-P", "-m", "mindspore.parallel.cluster.run"),
        *("--worker_num", number, "--local_worker_num", number),
        *("--master_addr", "127.0.0.1", "--master_port", str(port)),
        *("--log_dir", str(launch.records_dir / "msrun")),
        *("--join", "True"),
        # The log of no rank: ours are elsewhere. Otherwise it starts a tail for each.
        *("--tail_worker_log", number),
    ]
