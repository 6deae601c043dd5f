"""A training that goes wrong as it is told: a fire drill for torchrun and MPI, any number of ranks.

It saves every step. The last rank has the fault once the step of --fault_at is saved, and the other
ranks wait for it in the next one. A training that goes on from a checkpoint has no fault any more,
and ends with the model that it would have had without one.
"""

import argparse
import ctypes
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from trainjob import progress
from trainjob.checkpoint import latest, load, save, should_stop

GIB, MIB, KIB = 2**30, 2**20, 2**10
LARGEST_DISK_BYTES = 256 * MIB


def main() -> None:
    """Train from the last checkpoint on, to the end or until something happens."""
    args = parse_arguments()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    sum_over_ranks = join(world_size)
    found = latest()
    state = load(found) if found else {"step": 0, "model": 0.0}
    step, model = state["step"], state["model"]
    print(f"starts after step {step}")
    may_fail = step == 0 and rank == world_size - 1
    while step < args.steps:
        time.sleep(args.step_s)
        step += 1
        model = 0.9 * model + sum_over_ranks(step * (rank + 1))
        progress.report(step, args.steps, model=model)
        stop = should_stop()
        save(step, {"step": step, "model": model})
        sum_over_ranks(0)  # rank 0 writes, and the fault is not to come before it has
        if rank == 0:
            print(f"step {step} is saved")
        if may_fail and step == args.fault_at:
            print(f"fault: {args.fault}")
            FAULTS[args.fault](args.train_url)
        if stop:
            break
    if rank == 0:
        (args.train_url / "model.json").write_text(json.dumps({"step": step, "model": model}))


def parse_arguments() -> argparse.Namespace:
    """Read the output folder and the hyperparameters of the job."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--train_url", type=Path, required=True, help="folder for the model")
    parser.add_argument("--fault", choices=FAULTS, default="none", help="what goes wrong")
    parser.add_argument("--fault_at", type=int, default=5, help="after which step")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--step_s", type=float, default=0.5, help="seconds that a step takes")
    return parser.parse_known_args()[0]


def join(world_size: int) -> Callable[[float], float]:
    """Meet the other ranks; return what adds up a number over all of them."""
    if world_size == 1:
        return float
    if not dist.is_torchelastic_launched():
        from mpi4py import MPI  # only there where MPI starts the ranks

        return lambda number: float(MPI.COMM_WORLD.allreduce(number))
    dist.init_process_group("gloo")
    return all_reduced


def all_reduced(number: float) -> float:
    """Add up a number over the ranks of torch.distributed."""
    total = torch.tensor(float(number), dtype=torch.float64)
    dist.all_reduce(total)
    return total.item()


def go_on(_out: Path) -> None:
    """Have no fault."""


def raise_error(_out: Path) -> NoReturn:
    """Have a mistake in the script."""
    raise ValueError("label 11 is out of range: there are 10 classes")


def leave(_out: Path) -> NoReturn:
    """Leave with an exit code and without a word."""
    sys.exit(3)


def crash(_out: Path) -> None:
    """Read memory that is not there, as a broken extension does."""
    ctypes.string_at(0)


def kill_itself(_out: Path) -> None:
    """End without a trace, as by the kernel when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def ignore_stops(_out: Path) -> NoReturn:
    """Be busy for ever, without asking whether to stop, and ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        print("busy")
        time.sleep(1)


def leave_out_collective(_out: Path) -> NoReturn:
    """Wait for something else while the others wait in the next collective."""
    while True:
        signal.pause()


class StuckDataset(Dataset[int]):
    """Samples on a file system that does not answer."""

    def __len__(self) -> int:
        """Return the number of samples."""
        return 100

    def __getitem__(self, index: int) -> int:
        """Wait for ever, in a worker of the loader."""
        while True:
            signal.pause()


def wait_for_loader(_out: Path) -> None:
    """Wait for a batch that no worker of the loader hands over."""
    next(iter(DataLoader(StuckDataset(), num_workers=1)))


def print_much(_out: Path) -> None:
    """Print 1 GiB and go on."""
    line = "x" * (KIB - 1)
    for _ in range(GIB // KIB):
        print(line)


def fill_disk(out: Path) -> None:
    """Write to the disk of the outputs until it is full; not to one that others may need."""
    total = shutil.disk_usage(out).total
    if total > LARGEST_DISK_BYTES:
        raise SystemExit(
            f"asked to fill the disk of {str(out)!r}, found one of {total // MIB} MiB; "
            f"let TRAINJOB_WORKDIR name a folder on one of at most {LARGEST_DISK_BYTES // MIB} MiB"
        )
    with (out / "big.bin").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(64 * KIB))


def kill_launcher(_out: Path) -> None:
    """Kill torchrun or mpirun."""
    kill_and_wait(parents()[-3])


def kill_supervisor(_out: Path) -> None:
    """Kill the process that watches the launcher."""
    kill_and_wait(parents()[-2])


def kill_flow(_out: Path) -> None:
    """Kill the process that runs the flow."""
    kill_and_wait(parents()[-1])


def kill_and_wait(pid: int) -> NoReturn:
    """Kill a process of the run and wait for what becomes of this one."""
    os.kill(pid, signal.SIGKILL)
    while True:
        signal.pause()


def parents() -> list[int]:
    """Return the processes above this one: at last the launcher, the supervisor and the flow."""
    pids = [os.getppid()]
    while b"launch/supervisor.py" not in Path(f"/proc/{pids[-1]}/cmdline").read_bytes():
        pids.append(parent_of(pids[-1]))
    return [*pids, parent_of(pids[-1])]


def parent_of(pid: int) -> int:
    """Return the parent of a process (proc_pid_stat(5))."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


FAULTS: dict[str, Callable[[Path], None]] = {
    "none": go_on,
    "raise": raise_error,
    "exit": leave,
    "segfault": crash,
    "kill": kill_itself,
    "deaf": ignore_stops,
    "collective": leave_out_collective,
    "loader": wait_for_loader,
    "print": print_much,
    "disk": fill_disk,
    "launcher": kill_launcher,
    "supervisor": kill_supervisor,
    "flow": kill_flow,
}

if __name__ == "__main__":
    main()
