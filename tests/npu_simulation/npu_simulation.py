"""A SIMULATION of torch-npu for tests: the device ``npu`` in host memory, and hccl over gloo.

torch loads it as it loads torch-npu, by an entry point of the group ``torch.backends``; `build`
makes a folder of it that tests put on the PYTHONPATH of ranks. It proves our path to an NPU, and
nothing of CANN or of torch-npu.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist


def load() -> None:
    """Make ``npu`` a device of torch; called by torch when it is imported."""
    untyped: Any = torch
    untyped.ops.load_library(Path(__file__).with_name("device.so"))
    untyped.utils.rename_privateuse1_backend("npu")
    module = _device_module()
    untyped._register_device_module("npu", module)
    sys.modules["torch.npu"] = module
    untyped.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    dist.Backend.register_backend("hccl", _Hccl, devices=["npu"])


def _device_module() -> Any:
    """Return what torch, and scripts, call as ``torch.npu``."""
    device = torch.ops.npu_simulation
    module: Any = ModuleType("torch.npu", "A simulation.")
    module.device_count = device.device_count
    module.current_device = device.current_device
    module.is_available = lambda: device.device_count() > 0
    module.is_initialized = lambda: True
    module.set_device = lambda chosen: device.set_device(_index(chosen))
    module.synchronize = lambda chosen=None: None
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None
    # All random numbers are the CPU's.
    module.get_rng_state = lambda chosen="npu": torch.get_rng_state()
    module.set_rng_state = lambda state, chosen="npu": torch.set_rng_state(state)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    return module


def _index(chosen: "int | str | torch.device") -> int:
    return chosen if isinstance(chosen, int) else torch.device(chosen).index or 0


class _Hccl(dist.ProcessGroup):
    """A process group that lends the memory of its tensors to gloo."""

    def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self._gloo: Any = dist.ProcessGroupGloo(store, rank, size, timeout)

    def allreduce(self, tensors: Any, options: Any) -> Any:  # type: ignore[override]
        return self._gloo.allreduce(_on_cpu(tensors), options)

    def broadcast(self, tensors: Any, options: Any) -> Any:  # type: ignore[override]
        return self._gloo.broadcast(_on_cpu(tensors), options)

    def allgather(self, outputs: Any, inputs: Any, options: Any) -> Any:  # type: ignore[override]
        return self._gloo.allgather([_on_cpu(part) for part in outputs], _on_cpu(inputs), options)

    def barrier(self, options: Any) -> Any:  # type: ignore[override]
        return self._gloo.barrier(options)

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        return "hccl"

    def getSize(self) -> int:  # noqa: N802 - torch's name
        return int(self._gloo.size())


def _on_cpu(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.ops.npu_simulation.as_cpu(tensor.detach()) for tensor in tensors]
