"""A PyTorch script that knows nothing of trainjob: it trains on digits in gzipped IDX files.

All digits of the folder are put together, and every fifth one is held out for the test.
"""

import argparse
import gzip
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy

RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def main() -> None:
    """Read, train, test and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, required=True, help="folder with *-ubyte.gz files")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--epochs", type=int, default=10)
    args, _ = parser.parse_known_args()
    images = read_idx_files(args.train, "*-images-*.gz", num_sizes=3).unsqueeze(1)
    labels = read_idx_files(args.train, "*-labels-*.gz", num_sizes=1).long()
    is_test = torch.arange(len(labels)) % 5 == 0

    torch.manual_seed(0)  # the same weights and the same order on every rank
    model = nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(10)
    )
    model(images[:1] / 255)  # LazyLinear takes its size from the first image
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    # After the optimizer: modules that it imports would keep the group for good, and a rank that
    # ends with it may abort (https://github.com/pytorch/pytorch/issues/190489, torch 2.13).
    if WORLD_SIZE > 1:
        dist.init_process_group("gloo")
    train(model, optimizer, images[~is_test], labels[~is_test], args.epochs)
    if WORLD_SIZE > 1:
        dist.destroy_process_group()
    if RANK == 0:
        save(args.output, model, accuracy(model, images[is_test], labels[is_test]))


def read_idx_files(folder: Path, pattern: str, num_sizes: int) -> torch.Tensor:
    """Return the values of all files of one kind: after 4 bytes and the sizes, a byte each."""
    tensors = []
    for path in sorted(folder.glob(pattern)):
        data = torch.frombuffer(bytearray(gzip.decompress(path.read_bytes())), dtype=torch.uint8)
        header, values = data.tensor_split([4 + 4 * num_sizes])
        sizes = [int.from_bytes(bytes(size.tolist())) for size in header.split(4)[1:]]
        tensors.append(values.reshape(sizes))
    return torch.cat(tensors)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    epochs: int,
) -> None:
    """Train on this rank's share of every epoch, with the gradients of all ranks."""
    num_images = len(labels) - len(labels) % WORLD_SIZE  # as many for every rank
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(len(labels))[RANK:num_images:WORLD_SIZE].split(32):
            loss = cross_entropy(model(images[batch] / 255), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            if WORLD_SIZE > 1:
                average_gradients(model)
            optimizer.step()
        if RANK == 0:
            print(f"epoch {epoch}: loss of the last batch {loss.item():.4f}")


def average_gradients(model: nn.Module) -> None:
    """Replace each gradient by its mean over all ranks."""
    for weights in model.parameters():
        dist.all_reduce(weights.grad)
        weights.grad /= WORLD_SIZE


@torch.inference_mode()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of images that the model tells right."""
    guesses = torch.cat([model(batch / 255).argmax(1) for batch in images.split(1000)])
    return (guesses == labels).double().mean().item()


def save(folder: Path, model: nn.Module, test_accuracy: float) -> None:
    """Write the model and how good it is."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "metrics.json").write_text(json.dumps({"test_accuracy": test_accuracy}) + "\n")
    print(f"test accuracy {test_accuracy:.4f}")


if __name__ == "__main__":
    main()
