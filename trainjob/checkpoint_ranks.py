"""What the ranks of a training tell each other around a checkpoint.

They talk by torch.distributed if the script has initialised it, else by mpi4py if the script has
imported it. A script that uses neither is alone, or its ranks know of each other by the
environment only; then nothing is exchanged. Called by `trainjob.checkpoint`.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from trainjob.checkpoint_folder import CheckpointError

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """Return the number of this rank and how many there are."""
    if has_group() or _mpi_comm() is not None:
        return rank_and_size_of_talk()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def rank_and_size_of_talk() -> tuple[int, int]:
    """Return the number of this rank among those that it talks to, and how many these are."""
    if has_group():
        return dist.get_rank(), dist.get_world_size()
    comm = _mpi_comm()
    return (0, 1) if comm is None else (comm.Get_rank(), comm.Get_size())


def of_all_ranks(value: T) -> list[T]:
    """Return the values of all ranks, by rank. Every rank has to call it.

    Args:
        value: Anything that pickle can handle, and small: it goes to every rank.

    Returns:
        The same list on every rank; `[value]` in a script whose ranks do not talk to each other.
    """
    if has_group():
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return values
    comm = _mpi_comm()
    return [value] if comm is None else comm.allgather(value)


def is_true_on_any_rank(value: bool) -> bool:
    """Tell every rank whether the value is true on one of them. Every rank has to call it."""
    if has_group():
        flag = torch.tensor(int(value), device=_group_device())
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())
    comm = _mpi_comm()
    return value if comm is None else any(comm.allgather(value))


def agreed(asked: str, action: Callable[[], T]) -> list[T]:
    """Do the same on every rank; where one fails, fail on all of them instead of waiting for it.

    Args:
        asked: What was asked for, for the message.
        action: What to do. Ranks may not wait for each other in it, unless it fails on all.

    Returns:
        What it returned on each rank.

    Raises:
        CheckpointError: With the error of the first rank that failed.
    """
    cause: Exception | None = None
    result: T | None = None
    try:
        result = action()
    except Exception as error:  # noqa: BLE001 - raised below, on every rank
        cause = error
    told = f"{type(cause).__name__}: {cause}" if cause else None
    outcomes = of_all_ranks((told, result))
    for rank, (failure, _) in enumerate(outcomes):
        if failure is not None:
            raise CheckpointError(f"{asked}: rank {rank} failed with {failure}") from cause
    return [value for _, value in outcomes]  # type: ignore[misc]


def has_group() -> bool:
    """Tell whether the script has initialised torch.distributed."""
    return dist.is_available() and dist.is_initialized()


def _mpi_comm() -> Any:
    """Return mpi4py's COMM_WORLD if the script uses it and is not alone in it."""
    mpi: Any = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized():
        return None
    return mpi.COMM_WORLD if mpi.COMM_WORLD.Get_size() > 1 else None


def _group_device() -> torch.device:
    # On the CPU where the group can: a number on an accelerator waits for all that is queued there.
    if "cpu:" in str(dist.get_backend_config()):
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    return accelerator or torch.device("cpu")
