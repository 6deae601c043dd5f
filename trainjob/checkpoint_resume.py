"""What a resumed training needs to go on bit by bit as if it had not stopped.

That is the state of the random numbers, and the order of the samples with the place in it. Called
by user scripts through `trainjob.checkpoint`.
"""

import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from trainjob.checkpoint_folder import CheckpointError
from trainjob.checkpoint_ranks import (
    of_all_ranks,
    rank_and_size_of_talk,
    rank_and_world_size,
)
from trainjob.errors import Problem


def rng_state() -> list[dict[str, Any]]:
    """Return the state of the random numbers of all ranks. Every rank has to call it.

    Of torch on the CPU and on the current accelerator, of Python's `random`, and of numpy's global
    generator if numpy is imported. Generators of your own are yours to save (`get_state()`).
    """
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(words), gauss],
    }
    if torch.accelerator.is_available():
        state["accelerator"] = _device_module().get_rng_state()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        state["numpy"] = _as_lists(numpy.random.get_state(legacy=False))
    return of_all_ranks(state)


def set_rng_state(state: list[dict[str, Any]]) -> None:
    """Go on with the random numbers of this rank, from what `rng_state` returned.

    Raises:
        CheckpointError: If the state is not of as many ranks as there are now.
    """
    rank, num_ranks = rank_and_size_of_talk()
    if len(state) != num_ranks:
        asked, found = f"random numbers of {num_ranks} ranks", f"those of {len(state)}"
        do = "start as many ranks as before; with others, no run is the same bit by bit"
        raise CheckpointError(str(Problem("rng_state", asked, found, do)))
    own = state[rank]
    torch.set_rng_state(own["torch"])
    version, words, gauss = own["python"]
    random.setstate((version, tuple(words), gauss))
    if "accelerator" in own and torch.accelerator.is_available():
        _device_module().set_rng_state(own["accelerator"])
    if "numpy" in own:
        import numpy as np  # optional package numpy: it was in use when the state was saved

        np.random.set_state(own["numpy"])


class ResumableSampler(Sampler[int]):
    """The order in which one rank sees the samples of an epoch, shuffled the same way every time.

    The training loop says what it has used, so that batches which a loader has read ahead do not
    count::

        sampler = ResumableSampler(len(dataset), seed=0)
        loader = DataLoader(dataset, batch_size=32, sampler=sampler, generator=torch.Generator())
        while sampler.epoch < epochs:
            for images, labels in loader:
                ...
                sampler.advance(len(labels))
            sampler.next_epoch()

    `state_dict` may be saved and loaded anywhere in that loop, but not while it is iterated over:
    load first, then start the loop. All ranks must use as many samples in each step.

    Args:
        num_samples: Samples of the data set.
        rank: Of this process; absent: as the process group, MPI or the launcher says.
        world_size: Number of ranks; absent: likewise.
        seed: Of the order; the same on every rank.
        shuffle: Whether to mix the samples, in every epoch in another way.
        drop_last: Whether to leave out the samples that do not make a full share for every rank;
            otherwise the first ones come twice.
    """

    def __init__(
        self,
        num_samples: int,
        rank: int | None = None,
        world_size: int | None = None,
        seed: int = 0,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        own_rank, own_world_size = rank_and_world_size()
        self.num_samples = num_samples
        self.rank = own_rank if rank is None else rank
        self.world_size = own_world_size if world_size is None else world_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0
        self.start = 0
        """Samples of this epoch that all ranks together had used when the state was loaded."""
        self.position = 0
        """Samples of this epoch that this rank has used since."""
        if num_samples < 1 or not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"asked for rank {self.rank} of {self.world_size} and {num_samples} samples; "
                "the rank must be below world_size, and there must be a sample"
            )

    def __len__(self) -> int:
        """Return the samples a rank and epoch, wherever in it we are: schedules count on it."""
        return self._share_of(self.num_samples)

    def __iter__(self) -> Iterator[int]:
        """Yield what is left of this rank's share of the epoch."""
        order = torch.arange(self.num_samples)
        if self.shuffle:
            # Not seed + epoch: then epoch 1 of seed 0 would be epoch 0 of seed 1.
            seed = random.Random(f"{self.seed} {self.epoch}").getrandbits(32)  # noqa: S311
            order = torch.randperm(self.num_samples, generator=torch.Generator().manual_seed(seed))
        num_own = self._share_of(max(0, self.num_samples - self.start))
        places = self.start + self.rank + torch.arange(num_own) * self.world_size
        yield from order[places % self.num_samples][self.position :].tolist()

    def advance(self, num_samples: int) -> None:
        """Say that this rank has used a batch of so many samples."""
        self.position += num_samples

    def next_epoch(self) -> None:
        """Begin the next epoch, in another order."""
        self.epoch += 1
        self.start = self.position = 0

    def state_dict(self) -> dict[str, int | bool]:
        """Return where the training is, the same on every rank."""
        return {
            "epoch": self.epoch,
            "num_used": self.start + self.position * self.world_size,
            **self._order(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the training was.

        With another number of ranks the samples that nobody has used yet are shared out anew; of
        those that make no full share then, the same becomes as at the end of any epoch.

        Raises:
            CheckpointError: If the state is of another order of the samples.
        """
        found = {name: state.get(name) for name in self._order()}
        if found != self._order():
            do = "go on with the data set and seed that the training began with, or start anew"
            problem = Problem("ResumableSampler", str(self._order()), str(found), do)
            raise CheckpointError(str(problem))
        self.epoch = int(state["epoch"])
        self.start, self.position = int(state["num_used"]), 0

    def _share_of(self, num_samples: int) -> int:
        extra = 0 if self.drop_last else self.world_size - 1
        return (num_samples + extra) // self.world_size

    def _order(self) -> dict[str, int | bool]:
        return {"num_samples": self.num_samples, "seed": self.seed, "shuffle": self.shuffle}


def _device_module() -> Any:
    return torch.get_device_module(torch.accelerator.current_accelerator())


def _as_lists(value: Any) -> Any:
    """Return numpy's state as torch.load(weights_only=True) accepts it."""
    if isinstance(value, dict):
        return {name: _as_lists(part) for name, part in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value
