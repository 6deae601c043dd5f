"""A checkpoint in one file, ``state.pt``, that can be loaded without running code from it.

Called by `trainjob.checkpoint` on the rank that writes, and on every rank that reads.
"""

from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import torch

from trainjob.checkpoint_folder import CheckpointError
from trainjob.errors import Problem

_STATE_FILE = "state.pt"
_ATOMS = {
    *(bool, int, float, complex, str, bytes, bytearray, type(None)),
    *(torch.Size, torch.dtype, torch.device, torch.layout),
}
_TENSORS = (torch.Tensor, torch.nn.Parameter)


def write_plain(folder: Path, state: dict[str, Any]) -> None:
    """Write the state to `folder`.

    Raises:
        OSError: If it cannot be written.
        TypeError: If something in it could not be loaded again; before anything is written.
    """
    _check_loadable(state, "state")
    with (folder / _STATE_FILE).open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # Its clean-up fails on a full disk as well, and hides why (torch 2.13).
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def read_plain(folder: Path) -> dict[str, Any]:
    """Return the state in `folder`, with all tensors on the CPU.

    Raises:
        CheckpointError: If the file is not what was written.
    """
    file = folder / _STATE_FILE
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises a dozen kinds for bytes that are not what they were.
        asked, found = f"the state in {str(file)!r}", f"{type(error).__name__}: {error}"
        do = "it is damaged or of another version of torch: use an earlier one"
        raise CheckpointError(str(Problem("checkpoint", asked, found, do))) from error
    return state


def _check_loadable(value: Any, name: str) -> None:
    """Refuse now what torch.load(weights_only=True) would refuse when it is needed."""
    if type(value) in (dict, OrderedDict, Counter):
        for key, part in value.items():
            _check_loadable(key, f"a key of {name}")
            _check_loadable(part, f"{name}[{key!r}]")
    elif type(value) in (list, tuple, set):
        for number, part in enumerate(value):
            _check_loadable(part, f"{name}[{number}]")
    elif type(value) in _TENSORS:
        for attribute, part in vars(value).items():  # they are saved with it
            _check_loadable(part, f"{name}.{attribute}")
    elif type(value) not in _ATOMS and type(value) not in torch.serialization.get_safe_globals():
        raise TypeError(
            f"{name}: asked to save a {type(value).__module__}.{type(value).__qualname__}, which "
            "could not be loaded again; save state dicts, tensors, numbers, texts, lists and dicts"
        )
