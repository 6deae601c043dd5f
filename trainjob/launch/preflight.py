"""What would keep a job from starting on this machine, known before anything is started."""

import os
import shutil
from importlib.util import find_spec

from trainjob.algorithm import ScriptAlgorithm
from trainjob.errors import Problem
from trainjob.job import TrainingJob
from trainjob.launch.core_leases import can_choose_cores
from trainjob.launch.devices import VISIBLE_VARIABLES, num_devices
from trainjob.launch.environment import search_path
from trainjob.launch.machine import memory_bytes, num_cores
from trainjob.launch.memory_group import GROUP_ENV, group_place
from trainjob.launch.mounts import mount_problems
from trainjob.launch.mpi import NoMpirun, find_mpirun
from trainjob.launch.sandbox import sandbox_problems
from trainjob.places import mounts_of
from trainjob.values import counted, format_size
from trainjob.workspace import Workspace, workspaces_dir

# A machine sold as 64 GiB shows a little less: firmware and kernel take their part first, as does
# the file system of a disk.
_SHOWN = 0.9


def launch_problems(job: TrainingJob) -> list[Problem]:
    """Return what keeps `job` from being launched here. Nothing is imported or changed."""
    path = search_path(os.environ)
    if job.sandbox:
        view = sandbox_problems(path)
    else:
        view = mount_problems(mounts_of(job, Workspace.of_run("run")), path)
    return [
        *_launcher_problems(job),
        *_device_problems(job),
        *_flavor_problems(job),
        *_limit_problems(job),
        *view,
    ]


def _launcher_problems(job: TrainingJob) -> list[Problem]:
    if job.launcher == "torchrun" and find_spec("torch") is None:
        found = "no torch in this Python"
        return [Problem("launcher", "torchrun", found, "install it with pip install torch")]
    if job.launcher == "msrun" and find_spec("mindspore") is None:
        return [Problem("launcher", "msrun", "no mindspore in this Python", _install("msrun"))]
    if job.launcher == "mpi":
        return _mpi_problems(job)
    return []


def _install(extra: str) -> str:
    return f"install it in the checkout of trainjob: pip install -e '.[{extra}]'"


def _mpi_problems(job: TrainingJob) -> list[Problem]:
    if isinstance(job.algorithm, ScriptAlgorithm) and find_spec("mpi4py") is None:
        return [Problem("launcher", "mpi", "no mpi4py in this Python", _install("mpi"))]
    mpirun = find_mpirun()
    if isinstance(mpirun, NoMpirun):
        return [Problem("launcher", "mpi", mpirun.found, mpirun.do)]
    return []


def _device_problems(job: TrainingJob) -> list[Problem]:
    device, processes = job.resources.device, job.resources.processes_per_node
    if device == "cpu":
        return []
    present = num_devices(device, {**os.environ, **job.env})
    if present == 0:
        do = f"use device cpu, or check the driver and {VISIBLE_VARIABLES[device]}"
        return [Problem("resources.device", device, "none on this machine", do)]
    if present < processes:
        asked = f"{processes} processes on {device}"
        found = f"{present} {device} device{'s'[: present > 1]}"
        do = f"set processes_per_node to at most {present}"
        return [Problem("resources.processes_per_node", asked, found, do)]
    return []


def _flavor_problems(job: TrainingJob) -> list[Problem]:
    """Find what the machine has less of than the flavor says."""
    flavor = job.resources.flavor
    if flavor is None:
        return []
    cores, memory = num_cores(), memory_bytes()
    found = []
    if cores < flavor.cores or memory < flavor.memory_gib * 2**30 * _SHOWN:
        found.append(f"{counted(cores, 'core')} and {format_size(memory)} of memory")
    if flavor.device is not None:
        cards = num_devices(flavor.device, {**os.environ, **job.env})
        found += [counted(cards, f"{flavor.device} device")] if cards < flavor.cards else []
    if flavor.disk_gib is not None:
        folder = workspaces_dir()
        place = next(p for p in (folder, *folder.parents) if p.exists())
        size_bytes = shutil.disk_usage(place).total
        if size_bytes < flavor.disk_gib * 2**30 * _SHOWN:
            found.append(f"{format_size(size_bytes)} on the disk of {str(folder)!r}")
    if not found:
        return []
    do = "use a smaller flavor, or a bigger machine"
    machine = f"{' and '.join(found)} on this machine"
    return [Problem("resources.flavor", repr(str(flavor)), machine, do)]


def _limit_problems(job: TrainingJob) -> list[Problem]:
    """Find what keeps the ranks from being held to their flavor; they run all the same."""
    flavor, field = job.resources.flavor, "resources.flavor"
    if flavor is None:
        return []
    problems = []
    cores = num_cores()
    if cores > flavor.cores and not can_choose_cores(flavor.cores):
        asked = f"{flavor.cores} of {cores} cores"
        found = "that processes here may not choose their cores"
        do = "allow sched_setaffinity, such as in the seccomp profile; until then ranks use all"
        problems.append(Problem(field, asked, found, do, id="limits-cores", level="warning"))
    if os.environ.get(GROUP_ENV) and group_place(os.environ) is None:
        asked = f"a cgroup of {flavor.memory_gib} GiB below {os.environ[GROUP_ENV]!r}"
        found = "none there whose memory this user may divide"
        do = f"correct {GROUP_ENV}, see docs/flavors.md; until then memory is watched"
        problems.append(Problem(field, asked, found, do, id="limits-memory", level="warning"))
    return problems
