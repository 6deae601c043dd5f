"""Exact resume: random numbers go on, and so does the order of the samples."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from trainjob.checkpoint import (
    CheckpointError,
    Checkpoints,
    ResumableSampler,
    load,
    rng_state,
    set_rng_state,
)


def draw() -> tuple[float, ...]:
    return (torch.rand(1).item(), random.random(), random.gauss(), float(np.random.rand()))


def test_random_numbers_go_on_after_loading(tmp_path: Path) -> None:
    random.gauss()  # half of a pair: the other half is in the state
    np.random.standard_normal()
    Checkpoints(tmp_path).save(1, {"rng": rng_state()})
    expected = [draw() for _ in range(3)]

    set_rng_state(load(tmp_path / "step-00000001")["rng"])

    assert [draw() for _ in range(3)] == expected


def test_random_numbers_of_another_number_of_ranks_are_refused() -> None:
    with pytest.raises(CheckpointError, match="random numbers of 1 ranks, found those of 2"):
        set_rng_state(rng_state() * 2)


def epoch_of(sampler: ResumableSampler) -> list[int]:
    indices = list(sampler)
    sampler.next_epoch()
    return indices


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_samples", [1, 2, 20, 23])
def test_ranks_share_every_sample_of_an_epoch(num_samples: int, world_size: int) -> None:
    shares = [
        list(ResumableSampler(num_samples, rank, world_size, seed=1)) for rank in range(world_size)
    ]

    assert {index for share in shares for index in share} == set(range(num_samples))
    assert len({len(share) for share in shares}) == 1
    assert len(ResumableSampler(num_samples, 0, world_size)) == len(shares[0])


def test_samples_that_make_no_full_share_can_be_left_out() -> None:
    shares = [list(ResumableSampler(23, rank, 3, drop_last=True)) for rank in range(3)]

    assert [len(share) for share in shares] == [7, 7, 7]
    assert len({index for share in shares for index in share}) == 21


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def epochs(seed: int) -> list[list[int]]:
        sampler = ResumableSampler(50, 0, 1, seed)
        return [epoch_of(sampler) for _ in range(3)]

    assert epochs(0) == epochs(0)
    orders = [*epochs(0), *epochs(1)]
    assert len({tuple(order) for order in orders}) == 6
    assert list(ResumableSampler(5, 0, 1, shuffle=False)) == [0, 1, 2, 3, 4]


def loader_of(sampler: ResumableSampler, num_workers: int) -> DataLoader[tuple[torch.Tensor, ...]]:
    dataset = TensorDataset(torch.arange(sampler.num_samples))
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        dataset, batch_size=4, sampler=sampler, num_workers=num_workers, generator=generator
    )


def batches(sampler: ResumableSampler, num_workers: int) -> Iterator[list[int]]:
    """Yield what a training uses, to the end of the third epoch."""
    loader = loader_of(sampler, num_workers)
    while sampler.epoch < 3:
        for [batch] in loader:
            sampler.advance(len(batch))
            yield batch.tolist()
        sampler.next_epoch()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_training_that_stops_anywhere_goes_on_with_the_next_batch(num_workers: int) -> None:
    expected = list(batches(ResumableSampler(23, 0, 2, seed=3), 0))
    used: list[list[int]] = []
    state = ResumableSampler(23, 0, 2, seed=3).state_dict()

    for num_batches in (2, 1, 4, 100):
        sampler = ResumableSampler(23, 0, 2, seed=3)
        sampler.load_state_dict(state)
        for _, batch in zip(range(num_batches), batches(sampler, num_workers), strict=False):
            used.append(batch)
            state = sampler.state_dict()  # workers have read ahead by now

    assert used == expected


def test_a_loader_with_its_own_generator_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)

    torch.manual_seed(0)
    next(iter(loader_of(ResumableSampler(8, 0, 1), 0)))

    assert torch.equal(torch.rand(1), expected)


def test_with_more_ranks_what_is_left_of_the_epoch_is_shared_anew() -> None:
    two = [ResumableSampler(24, rank, 2) for rank in range(2)]
    used = [index for sampler in two for index in list(sampler)[:6]]
    for sampler in two:
        sampler.advance(6)
    assert two[0].state_dict() == two[1].state_dict()

    three = [ResumableSampler(24, rank, 3) for rank in range(3)]
    for sampler in three:
        sampler.load_state_dict(two[0].state_dict())
    left = [index for sampler in three for index in sampler]

    assert sorted(used + left) == list(range(24))


def use(shares: list[ResumableSampler], state: dict[str, Any], num_each: int) -> list[int]:
    """Go on from `state` on these ranks, and return the samples that they use, step by step."""
    for sampler in shares:
        sampler.load_state_dict(state)
    left = [list(sampler) for sampler in shares]
    for sampler in shares:
        sampler.advance(min(num_each, len(left[sampler.rank])))
    return [index for step in zip(*left, strict=True) for index in step][: num_each * len(shares)]


@pytest.mark.parametrize("num_samples", [24, 25, 31])
def test_whatever_the_numbers_of_ranks_no_sample_is_lost_or_used_again(num_samples: int) -> None:
    used: list[int] = []
    state = ResumableSampler(num_samples, 0, 1).state_dict()

    for world_size, num_each in ((2, 5), (3, 1), (4, 1), (1, 2)):
        shares = [ResumableSampler(num_samples, rank, world_size) for rank in range(world_size)]
        used += use(shares, state, num_each)
        state, *others = [sampler.state_dict() for sampler in shares]
        assert others == [state] * (world_size - 1)

    assert used == list(ResumableSampler(num_samples, 0, 1))[:19]
    shares = [ResumableSampler(num_samples, rank, 2) for rank in range(2)]
    used += use(shares, state, num_samples)
    assert sorted(used[:num_samples]) == list(range(num_samples))
    assert used[num_samples:] == used[: (num_samples - 19) % 2]  # the first ones come twice
    assert use(shares, shares[0].state_dict(), num_samples) == []


def test_what_makes_no_full_share_of_the_rest_can_be_left_out() -> None:
    state = ResumableSampler(24, 0, 1).state_dict() | {"num_used": 10}
    shares = [ResumableSampler(24, rank, 3, drop_last=True) for rank in range(3)]

    used = use(shares, state, 24)

    assert used == list(ResumableSampler(24, 0, 1))[10:22]


@pytest.mark.parametrize("other", [{"seed": 1}, {"num_samples": 11}, {"shuffle": False}])
def test_a_state_of_another_order_is_refused(other: dict[str, Any]) -> None:
    state = ResumableSampler(10, 0, 1).state_dict()
    own: dict[str, Any] = {"num_samples": 10, "rank": 0, "world_size": 1}
    sampler = ResumableSampler(**own | other)

    with pytest.raises(CheckpointError, match="go on with the data set and seed"):
        sampler.load_state_dict(state)
    with pytest.raises(CheckpointError, match="ResumableSampler: asked for"):
        sampler.load_state_dict({})


@pytest.mark.parametrize(("num_samples", "rank", "world_size"), [(0, 0, 1), (5, 2, 2), (5, -1, 2)])
def test_a_rank_or_a_size_that_cannot_be_is_refused(
    num_samples: int, rank: int, world_size: int
) -> None:
    with pytest.raises(ValueError, match="the rank must be below world_size"):
        ResumableSampler(num_samples, rank, world_size)


def test_rank_and_world_size_are_those_of_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")

    sampler = ResumableSampler(8, shuffle=False)

    assert list(sampler) == [1, 5]
