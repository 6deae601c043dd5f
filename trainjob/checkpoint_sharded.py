"""Checkpoints of which every rank writes its part, by torch.distributed.checkpoint.

Called by `trainjob.checkpoint` on every rank, and imported by it only when it is needed: it costs
half a second.
"""

import errno
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.stateful import Stateful

from trainjob.checkpoint_folder import CheckpointError

_LITTLE_BYTES = 64 * 1024  # of free space, after a write that failed


def state_dicts_of(state: dict[str, Any]) -> dict[str, Any]:
    """Return `state` with every Stateful object in it replaced by its state dict."""
    return {
        name: value.state_dict() if isinstance(value, Stateful) else value
        for name, value in state.items()
    }


def write_shards(folder: Path, rank: int, state: dict[str, Any]) -> set[str]:
    """Write this rank's part of `state` to `folder`, and flush it to the disk.

    Returns:
        The files that this rank wrote.

    Raises:
        CheckpointError: On every rank, with the reason of the one that failed.
    """
    with _one_error(folder):
        save(state, storage_writer=FileSystemWriter(folder, sync_files=True))
    return {file.name for file in folder.glob(f"__{rank}_*")}


def read_shards(folder: Path, into: dict[str, Any]) -> None:
    """Fill the tensors and values of `into`, on every rank its own part.

    Raises:
        CheckpointError: On every rank, with the reason of the one that failed.
    """
    with _one_error(folder):
        load(into, storage_reader=FileSystemReader(folder))


@contextmanager
def _one_error(folder: Path) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # One process alone is meant to be alone (torch 2.13).
            warnings.filterwarnings("ignore", "torch.distributed is (?:disabled|unavailable)")
            yield
    except CheckpointException as error:  # not an Exception: nobody would catch it (torch 2.13)
        rank, (failure, _) = next(iter(error.failures.items()))
        raise CheckpointError(
            f"rank {rank}: {type(failure).__name__}: {failure}{_full_disk(folder)}"
        ) from error


def _full_disk(folder: Path) -> str:
    # torch's clean-up fails on a full disk as well, and hides why (torch 2.13).
    free = shutil.disk_usage(folder).free
    return f" ({os.strerror(errno.ENOSPC)}: {free} bytes free)" if free < _LITTLE_BYTES else ""
