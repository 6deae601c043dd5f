"""The environment of the ranks, built explicitly.

The flow process inherits everything that its worker has, credentials included; ranks run other
people's code. So they get what is on a list, what the job says, and what a launch needs.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from trainjob.launch.devices import VISIBLE_VARIABLES
from trainjob.launch.launch import Device, Launch
from trainjob.launch.machine import num_cores
from trainjob.launch.numa import threads_of_rank
from trainjob.launch.sandbox import shows

_INHERITED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|XDG_CACHE_HOME"
    r"|LD_LIBRARY_PATH|VIRTUAL_ENV|CONDA_PREFIX"
    r"|PYTHON(?:PATH|HOME|PYCACHEPREFIX|DONTWRITEBYTECODE|HASHSEED)"
    r"|SSL_CERT_(?:FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
    r"|(?:CUDA|CUDNN|CUBLAS|NVIDIA|NCCL|ASCEND|HCCL|GLOO|TP|UCX|FI|MPICH|OMPI_MCA"
    r"|OMP|GOMP|KMP|MKL|OPENBLAS|TORCH|TORCHINDUCTOR|PYTORCH|TRITON)_\w+"
    r"|HF_(?:HOME|HUB_CACHE|ENDPOINT)"
)
"""Names that say how the machine is set up. Anything else of the worker stays with the worker."""

_PROXY = re.compile(r"(?:HTTP|HTTPS|ALL|NO)_PROXY", re.IGNORECASE)
"""How the machine reaches others, unless it tells the login, which is the worker's alone."""

_PLACES_OF_WORKER = {"TMPDIR", "XDG_CACHE_HOME"}
"""Folders that a sandbox does not show; the place that HOME names is there, and another one."""

_OF_DEVICES: Mapping[Device, Mapping[str, str]] = {
    "cpu": {},
    # One node: ranks find one another on loopback, whatever firewalls and host names are like, and
    # send their data from card to card. The order is that in which trainjob.launch.devices counts.
    "cuda": {"NCCL_SOCKET_IFNAME": "lo", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    "npu": {"HCCL_SOCKET_IFNAME": "lo"},
}
"""What ranks on a kind of device get unless the worker or the job says otherwise."""

_OF_MACHINE = re.compile(rf"(?:{_INHERITED.pattern})|PYTHONUNBUFFERED")


def is_of_machine(name: str) -> bool:
    """Tell whether programs take this variable for a setting of the machine, such as PATH."""
    return _OF_MACHINE.fullmatch(name) is not None


def rank_environment(
    launch: Launch, base: Mapping[str, str], port: int | None = None
) -> dict[str, str]:
    """Return the environment in which the launcher and all ranks run.

    RANK and its like are added on every rank, where they are known.

    Args:
        launch: What is started.
        base: The environment of this process.
        port: A free port for rank 0; torchrun finds its own.
    """
    inherited = {name: value for name, value in base.items() if _is_inherited(name, value)}
    inherited.pop("OMP_NUM_THREADS", None)  # of the worker; only the job's own counts
    if launch.is_sandboxed:
        inherited = {n: value for n, value in inherited.items() if _is_shown(launch, n, value)}
        inherited["TMPDIR"] = "/tmp"  # noqa: S108 - that of the sandbox
    if launch.python is not None:
        inherited["VIRTUAL_ENV"] = str(launch.python.parent.parent)
    shared = (launch.cores or num_cores()) // launch.world_size
    threads = threads_of_rank(launch.rank_cores) if launch.rank_cores else max(1, shared)
    defaults = {
        # One node: without it gloo asks what the host name resolves to, and may not like it.
        "GLOO_SOCKET_IFNAME": "lo",
        **_OF_DEVICES[launch.device],
        **inherited,
        "PATH": search_path(base, launch.python),
        # torchrun's default of 1 wastes the other cores.
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
    }
    if launch.device != "npu":
        # torch-npu breaks `import torch` on machines without its driver.
        defaults["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    if launch.device == "cpu":
        defaults |= dict.fromkeys(VISIBLE_VARIABLES.values(), "")
    required = {
        "TRAINJOB_RUN_ID": launch.run_id,
        "TRAINJOB_STOP_FILE": str(launch.stop_file.absolute()),
        **_of_launcher(launch, port),
    }
    if launch.lease is not None:
        # Of the cards that the worker or the job chose, those that no other run has.
        required[VISIBLE_VARIABLES[launch.device]] = ",".join(
            card.choice for card in launch.lease.cards
        )
    # What the job says goes before everything but what keeps ranks together and findable.
    return defaults | launch.env | required


def search_path(base: Mapping[str, str], python: Path | None = None) -> str:
    """Return the PATH of the ranks: the folder of their Python first, as in an active venv.

    So that `python` in a startup command is the one that has torch.

    Args:
        base: The environment of this process.
        python: The Python of the ranks; None: this one.
    """
    own = [str(path.parent) for path in (python, Path(sys.executable)) if path is not None]
    folders = base.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([*own, *(folder for folder in folders if folder not in own)])


def _is_inherited(name: str, value: str) -> bool:
    """Tell whether the ranks get a variable of the worker."""
    is_proxy = _PROXY.fullmatch(name) is not None and "@" not in value
    return is_proxy or _INHERITED.fullmatch(name) is not None


def _is_shown(launch: Launch, name: str, value: str) -> bool:
    """Tell whether what a variable names, if that is a place, is one in the sandbox.

    A cache whose folder is not there could not be made on a root that is only read.
    """
    if name in _PLACES_OF_WORKER:
        return False
    return not value.startswith("/") or any(
        shows(path, launch.mounts, launch.python) for path in value.split(os.pathsep)
    )


def _of_launcher(launch: Launch, port: int | None) -> dict[str, str]:
    if launch.launcher == "torchrun":
        # Without it a second rendezvous reads the addresses of the first.
        # https://github.com/pytorch/pytorch/issues/135712, torch 2.13
        return {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    address = {"MASTER_ADDR": "127.0.0.1"}
    if port is not None:
        address["MASTER_PORT"] = str(port)
    if launch.launcher == "mpi":
        # Open MPI refuses root, which is who one is in a container; both words are its own.
        address |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return address
