"""Train a network on handwritten digits with torch.distributed: cpu, cuda or npu, 1 to n ranks.

It saves its state again and again; started with the same --checkpoint_dir, it goes on from there.
"""

import argparse
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # see process_group
from digits import (
    DigitNet,
    TrainingOrder,
    accuracy,
    finish_epoch,
    load_digits,
    save_results,
)
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR

from trainjob import progress  # shows steps in the terminal; training works the same without it
from trainjob.checkpoint import (
    Checkpoints,
    load,
    of_all_ranks,
    rng_state,
    set_rng_state,
    should_stop,
)


def parse_arguments() -> argparse.Namespace:
    """Read the channels and the hyperparameters of the job."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data_url", type=Path, required=True, help="folder with IDX files")
    parser.add_argument("--train_url", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--checkpoint_dir",
        type=Path,
        default=os.environ.get("TRAINJOB_CHECKPOINT_DIR"),
        help="folder to save the state to, and to go on from; default: a folder below train_url",
    )
    parser.add_argument("--save_every", type=int, default=20, help="steps from save to save")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.004)
    parser.add_argument("--batch_size", type=int, default=16, help="images a rank and step")
    parser.add_argument("--channels", type=int, default=16, help="of the first convolution")
    parser.add_argument("--seed", type=int, default=0)
    arguments, _ = parser.parse_known_args()  # platforms may add arguments of their own
    arguments.checkpoint_dir = arguments.checkpoint_dir or arguments.train_url / "checkpoints"
    return arguments


def main() -> None:
    """Train together with the other ranks."""
    args = parse_arguments()
    # Every launcher sets these; started by hand, the script is the only rank.
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = pick_device(int(os.environ.get("LOCAL_RANK", "0")))
    with process_group(device, world_size):
        train(args, device, rank, world_size)


def train(args: argparse.Namespace, device: torch.device, rank: int, world_size: int) -> None:
    """Train from the last checkpoint on, to the end or until we are asked to stop."""
    torch.manual_seed(args.seed)
    train_set, test_set = (digits.to(device) for digits in load_digits(args.data_url))
    order = TrainingOrder(train_set, args.epochs, args.batch_size, args.seed, rank, world_size)
    net = DigitNet(*train_set.images.shape[-2:], args.channels).to(device)
    model = DistributedDataParallel(net) if world_size > 1 else net
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    schedule = CosineAnnealingLR(optimizer, args.epochs)
    # DDP settles the order in which it sums gradients after its first backward. With that done, the
    # first step after a restart is the same to the last bit, on any number of ranks.
    model(train_set.images[:1]).sum().backward()
    checkpoints = Checkpoints(args.checkpoint_dir)
    parts = {"net": net, "optimizer": optimizer, "schedule": schedule}
    step, history, loss_sums = resume(checkpoints, parts, world_size)
    loss_sum = torch.tensor(loss_sums[rank], device=device)

    for images, labels in order.batches_after(step):
        loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach()
        step += 1
        progress.report(step, order.num_steps, order.epoch_of(step), loss=loss.item())
        ends_epoch = step % order.steps_per_epoch == 0
        if ends_epoch:
            schedule.step()
            if world_size > 1:
                dist.all_reduce(loss_sum)
            if rank == 0:
                mean_loss = loss_sum.item() / order.steps_per_epoch / world_size
                finish_epoch(args.train_url, net, test_set, mean_loss, history)
            loss_sum.zero_()
        stop = should_stop(every=10)
        if stop or ends_epoch or step % args.save_every == 0:
            save(checkpoints, parts, step, history, loss_sum.item())
        if stop:
            break
    if rank == 0:
        save_results(args.train_url, net, accuracy(net, test_set), history)


def resume(
    checkpoints: Checkpoints, parts: dict[str, Any], world_size: int
) -> tuple[int, list[dict[str, float]], list[float]]:
    """Load the last checkpoint, if any; return the step, the history and each rank's loss sum.

    The random numbers are not used after the start, unless you add a dropout or the like.
    """
    found = checkpoints.latest()
    if found is None:
        return 0, [], [0.0] * world_size
    state = load(found)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    set_rng_state(state["rng"])
    print(f"goes on from step {state['step']}")
    return state["step"], state["history"], state["loss_sums"]


def save(
    checkpoints: Checkpoints,
    parts: dict[str, Any],
    step: int,
    history: list[dict[str, float]],
    loss_sum: float,
) -> None:
    """Save all that the next steps depend on; every rank has to call it, and rank 0 writes."""
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"step": step, "history": history, "loss_sums": of_all_ranks(loss_sum)}
    checkpoints.save(step, {**state, "rng": rng_state()})


def pick_device(local_rank: int) -> torch.device:
    """Return this rank's accelerator, or the CPU if the machine or the job has none."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    torch.accelerator.set_device_index(local_rank)
    return torch.device(torch.accelerator.current_accelerator().type, local_rank)


@contextmanager
def process_group(device: torch.device, world_size: int) -> Iterator[None]:
    """Join the other ranks, and leave them when the block has ended without an error.

    On leaving nothing may hold the group any more, or gloo's threads abort the process or hang it
    at its end (https://github.com/pytorch/pytorch/issues/190489, seen with torch 2.13): not the
    model, hence gc.collect(), and not torch.distributed.nn, which keeps the group that it finds
    when it is imported, hence its import at the top; optimizers import it otherwise.
    """
    if world_size > 1:
        dist.init_process_group(dist.get_default_backend_for_device(device))
    yield
    if world_size > 1:
        gc.collect()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
