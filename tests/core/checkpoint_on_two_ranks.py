"""What tests of checkpoints do on two ranks or more: `checkpoint_on_two_ranks.py FOLDER SCENARIO…`.

Each scenario is a function below; what it returns is written to FOLDER as JSON, a file a rank.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from trainjob import checkpoint
from trainjob.checkpoint import CheckpointError, Checkpoints, load, rng_state, set_rng_state

FOLDER = Path(sys.argv[1])
RANK = int(os.environ.get("RANK", os.environ.get("PMI_RANK", "0")))


class Stateful:
    """A part of a state whose state dict is to be had on rank 0 only."""

    def state_dict(self) -> dict[str, Any]:
        if RANK == 1:
            raise KeyError("no such layer")
        return {"a": 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


class Killed(Stateful):
    """A part of a state at which rank 1 is killed."""

    def state_dict(self) -> dict[str, Any]:
        if RANK == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}


def sharded_state(values: torch.Tensor) -> dict[str, Any]:
    return {"w": distributed(values), "step": 5, "rng": rng_state()}


def distributed(values: torch.Tensor) -> DTensor:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return distribute_tensor(values, mesh, [Shard(0)])


def whole(values: DTensor) -> list[float]:
    numbers: list[float] = values.redistribute(placements=[Replicate()]).to_local().tolist()
    return numbers


def sharded(folder: Path) -> Any:
    Checkpoints(folder).save(5, sharded_state(torch.arange(10.0)), sharded=True)
    path = Checkpoints(folder).latest()
    assert path is not None
    state = load(path, into=sharded_state(torch.zeros(10)))
    return {
        "name": path.name,
        "mine": state["w"].to_local().tolist(),
        "whole": whole(state["w"]),
        "files": sorted(file.name for file in path.iterdir()),
        "num_rng": len(state["rng"]),
    }


def of_other_ranks(folder: Path) -> Any:
    """What another number of ranks has saved, in parts or as one."""
    path = Checkpoints(folder).latest()
    assert path is not None
    state = load(path, into={"w": distributed(torch.zeros(10)), "step": 0})
    return {
        "mine": state["w"].to_local().tolist(),
        "whole": whole(state["w"]),
        "step": state["step"],
    }


def _error_of(save: Any) -> str:
    try:
        save()
    except CheckpointError as error:
        return str(error)
    return "no error"


def one_rank_fails(folder: Path) -> Any:
    """Every save fails on rank 1 or on rank 0 alone; then all is well again."""
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, {"a": 1}, sharded=True)
    bad = {f"of rank {RANK}": (lambda: 1) if RANK == 1 else 2}
    blocked = Checkpoints(folder / "step-00000001" / "COMPLETE")
    told = [
        _error_of(lambda: checkpoints.save(2, bad, sharded=True)),
        _error_of(lambda: checkpoints.save(2, {"s": Stateful()}, sharded=True)),
        _error_of(lambda: blocked.save(2, {"a": 1}, sharded=True)),
    ]
    left = sorted(path.name for path in folder.iterdir())
    dist.barrier()
    checkpoints.save(2, {"a": 2}, sharded=True)
    return {"told": told, "left": left, "latest": str(checkpoints.latest())}


def other_steps(folder: Path) -> Any:
    """Ranks whose counts of steps have come apart; then all is well again."""
    checkpoints = Checkpoints(folder)
    told = _error_of(lambda: checkpoints.save(10 + RANK, {f"stage {RANK}": RANK}, sharded=True))
    dist.barrier()  # rank 0 drops its draft
    left = sorted(path.name for path in folder.iterdir())
    dist.barrier()
    name = f"stage {RANK}"
    checkpoints.save(12, {name: {"w": torch.full((2,), float(RANK))}}, sharded=True)
    path = checkpoints.latest()
    assert path is not None
    stage = load(path, into={name: {"w": torch.zeros(2)}})[name]["w"].tolist()
    return {"told": told, "left": left, "latest": path.name, "stage": stage}


def damaged(folder: Path) -> Any:
    """A shard is cut off: passed over by all, and no rank loads it."""
    for step in (1, 2):
        Checkpoints(folder).save(step, {"w": torch.ones(3)}, sharded=True)
    [shard, *_] = sorted((folder / "step-00000002").glob("__*"))
    if RANK == 0:
        shard.write_bytes(b"")
    dist.barrier()
    told = _error_of(lambda: load(folder / "step-00000002", into={"w": torch.zeros(3)}))
    return {"latest": str(Checkpoints(folder).latest()), "told": told}


def ranks_see_other_folders(folder: Path) -> Any:
    own = Checkpoints(folder / str(RANK))
    # As a node would that only has what an earlier sync brought.
    for step in (1, 2, 3)[: 3 - RANK]:
        _save_locally(own.folder, step)
    return {"latest": str(own.latest()), "none": Checkpoints(folder / "nowhere").latest()}


def best(folder: Path) -> Any:
    """Rank 1 asks while rank 0 still writes the best one; then rank 0 sees more than rank 1."""
    checkpoints = Checkpoints(folder, keep_last=None, best=("accuracy", "max"))
    if RANK == 1:
        found = [checkpoints.best()]
    else:
        for step, accuracy in ((1, 0.5), (2, 0.7), (3, 0.6)):
            checkpoints.save(step, {"w": torch.ones(100_000)}, metrics={"accuracy": accuracy})
        found = [checkpoints.best()]
    own = Checkpoints(folder / str(RANK), best=("accuracy", "max"))
    for step in (1, 2, 3)[: 3 - RANK]:
        _save_locally(own.folder, step, accuracy=float(step))
    nowhere = Checkpoints(folder / "nowhere", best=("accuracy", "max"))
    found += [own.best(), nowhere.best()]
    return [path.name if path else None for path in found]


def _save_locally(folder: Path, step: int, **metrics: float | None) -> None:
    from trainjob.checkpoint_folder import Draft, Marker

    draft = Draft(folder, step)
    draft.complete(Marker(step, "plain", {}, metrics, 2, None, "0"), None, None)
    draft.close()


def plain(folder: Path) -> Any:
    """Rank 0 writes; each rank goes on with its own random numbers."""
    torch.manual_seed(RANK)
    random.seed(RANK)
    state = {"rng": rng_state(), "of_all": checkpoint.of_all_ranks(f"rank {RANK}")}
    Checkpoints(folder).save(1, state)
    expected = [torch.rand(1).item(), random.random()]
    path = Checkpoints(folder).latest()
    assert path is not None
    loaded = load(path)
    set_rng_state(loaded["rng"])
    return {
        "same": [torch.rand(1).item(), random.random()] == expected,
        "first": expected,
        "of_all": loaded["of_all"],
        "marker": json.loads((path / "COMPLETE").read_text())["world_size"],
    }


def stop(folder: Path) -> Any:
    """Rank 1 alone is asked to stop; ranks talk in every third step."""
    os.environ["TRAINJOB_STOP_FILE"] = str(folder / f"stop-{RANK}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stop-1").touch()
    return [checkpoint.should_stop(every=3) for _ in range(5)]


def shards_without_a_group(folder: Path) -> Any:
    return _error_of(lambda: Checkpoints(folder).save(1, {"a": 1}, sharded=True))


def killed(folder: Path) -> Any:
    """Rank 1 is killed in a save: this rank gets an error, and what was there stays."""
    Checkpoints(folder).save(1, {"a": 1}, sharded=True)
    try:
        Checkpoints(folder).save(2, {"k": Killed()}, sharded=True)
    except RuntimeError as error:
        return type(error).__name__
    return "no error"


def main() -> None:
    if "MPI" in sys.argv[2:]:
        import mpi4py.MPI  # noqa: F401 - what a script that uses it does
    else:
        dist.init_process_group("gloo")
    for name in sys.argv[2:]:
        if name != "MPI":
            result = globals()[name](FOLDER / name)
            (FOLDER / f"{name}-{RANK}.json").write_text(json.dumps(result))
    if dist.is_initialized():
        dist.destroy_process_group()
    # All is said. On a busy machine torch 2.13 has aborted a Python that ended, in a thread of its
    # own: "terminate called without an active exception".
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
