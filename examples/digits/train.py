"""Train a network on handwritten digits with torch.distributed: cpu, cuda or npu, 1 to n ranks."""

import argparse
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn  # see process_group
from digits import DigitNet, finish_epoch, load_digits
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR

from trainjob import progress  # to show steps in the terminal; training works the same without it


def parse_arguments() -> argparse.Namespace:
    """Read the channels and the hyperparameters of the job."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data_url", type=Path, required=True, help="folder with IDX files")
    parser.add_argument("--train_url", type=Path, required=True, help="folder for the results")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.004)
    parser.add_argument("--batch_size", type=int, default=16, help="images a rank and step")
    parser.add_argument("--channels", type=int, default=16, help="of the first convolution")
    parser.add_argument("--seed", type=int, default=0)
    arguments, _ = parser.parse_known_args()  # platforms may add arguments of their own
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
    """Train, and after each epoch test and save on rank 0."""
    torch.manual_seed(args.seed)
    train_set, test_set = (digits.to(device) for digits in load_digits(args.data_url))
    net = DigitNet(*train_set.images.shape[-2:], args.channels).to(device)
    model = DistributedDataParallel(net) if world_size > 1 else net
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    schedule = CosineAnnealingLR(optimizer, args.epochs)
    history: list[dict[str, float]] = []
    step = 0
    for epoch in range(1, args.epochs + 1):
        share = train_set.shuffled_share(rank, world_size, seed=args.seed + epoch)
        batches = share.split(args.batch_size)
        loss_sum = torch.zeros((), device=device)
        for images, labels in batches:
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach()
            step += 1
            progress.report(step, args.epochs * len(batches), epoch, loss=loss.item())
        schedule.step()
        if world_size > 1:
            dist.all_reduce(loss_sum)
        if rank == 0:
            mean_loss = loss_sum.item() / len(batches) / world_size
            finish_epoch(args.train_url, net, test_set, mean_loss, history)


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
