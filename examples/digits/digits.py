"""Data, model and results of the digits examples: what train.py and train_mpi.py share.

Reads IDX files of any image size, gzipped or plain: scikit-learn's digits (8x8) as well as MNIST
(28x28); or one PGM file an image, in a folder for each digit. All images stay in memory as bytes,
and the network turns a batch into numbers.
"""

import gzip
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn


class Digits(NamedTuple):
    """Images `(n, 1, height, width) uint8` and their labels `(n,) int64`."""

    images: torch.Tensor
    labels: torch.Tensor

    def at(self, indices: torch.Tensor) -> "Digits":
        """Return the digits at these indices."""
        return Digits(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> "Digits":
        """Return the digits on `device`."""
        return Digits(self.images.to(device), self.labels.to(device))

    def split(self, batch_size: int) -> list["Digits"]:
        """Return the digits in batches; the last one may be smaller."""
        parts = zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True)
        return [Digits(images, labels) for images, labels in parts]

    def shuffled_share(self, rank: int, world_size: int, seed: int) -> "Digits":
        """Return the digits that `rank` trains on in the epoch with this seed.

        Every rank draws the same order and takes its own part of it. The parts are equally long,
        since a rank with one batch more would wait for the others for ever.
        """
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        num_equal = len(order) - len(order) % world_size
        return self.at(order[rank:num_equal:world_size])


@dataclass(frozen=True)
class TrainingOrder:
    """What a rank trains on in which step: all digits in every epoch, each time mixed anew.

    It depends on nothing but these values, so a training that was interrupted can go on in the
    middle of an epoch with the very batches that were left.
    """

    digits: Digits
    epochs: int
    batch_size: int
    seed: int
    rank: int
    world_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches a rank and epoch."""
        return -(-(len(self.digits.labels) // self.world_size) // self.batch_size)

    @property
    def num_steps(self) -> int:
        """Number of batches a rank in all epochs."""
        return self.epochs * self.steps_per_epoch

    def epoch_of(self, step: int) -> int:
        """Return the epoch that a step belongs to, both counted from 1."""
        return 1 + (step - 1) // self.steps_per_epoch

    def batches_after(self, step: int) -> Iterator[Digits]:
        """Yield this rank's batches to the end of the last epoch, leaving out the first `step`."""
        epoch, num_done = divmod(step, self.steps_per_epoch)
        for seed in range(self.seed + epoch + 1, self.seed + self.epochs + 1):
            share = self.digits.shuffled_share(self.rank, self.world_size, seed)
            yield from share.split(self.batch_size)[num_done:]
            num_done = 0


def load_digits(folder: Path) -> tuple[Digits, Digits]:
    """Return the digits to train on and those to test on.

    These are the files `train-*` and `t10k-*`, or the folders `train/DIGIT/` and `t10k/DIGIT/`. If
    there is only one of the two, a fifth of it is set apart for the test, the same fifth every
    time.
    """
    sets = [
        _read_set(folder, prefix)
        for prefix in ("train", "t10k")
        if (folder / prefix).is_dir() or any(folder.glob(f"{prefix}-images*"))
    ]
    if not sets:
        raise FileNotFoundError(f"no train-images*, t10k-images*, train/ or t10k/ in {folder}")
    if len(sets) == 2:
        return sets[0], sets[1]
    num_images = len(sets[0].labels)
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(0))
    test, train = order.tensor_split([num_images // 5])
    return sets[0].at(train), sets[0].at(test)


def _read_set(folder: Path, prefix: str) -> Digits:
    if (folder / prefix).is_dir():
        return _read_pictures(folder / prefix)
    images, labels = (
        read_idx(_first_file(folder, f"{prefix}-{kind}*")) for kind in ("images", "labels")
    )
    if len(images) != len(labels):
        raise ValueError(f"{prefix}-* in {folder}: {len(images)} images, {len(labels)} labels")
    return Digits(images.unsqueeze(1), labels.long())


def _read_pictures(folder: Path) -> Digits:
    # By their numbers, so that the digits have the order that they have in IDX files.
    files = sorted(folder.glob("*/*.pgm"), key=lambda file: file.name)
    labels = torch.tensor([int(file.parent.name) for file in files])
    return Digits(torch.stack([read_pgm(file) for file in files]).unsqueeze(1), labels)


def read_pgm(path: Path) -> torch.Tensor:
    """Read a binary PGM file of bytes (https://netpbm.sourceforge.net/doc/pgm.html)."""
    data = path.read_bytes()
    header = re.match(rb"P5\s+(\d+)\s+(\d+)\s+255\s", data)
    if header is None:
        raise ValueError(f"{path} is not a PGM file of bytes")
    width, height = map(int, header.groups())
    values = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header.end())
    return values.reshape(height, width)


def _first_file(folder: Path, pattern: str) -> Path:
    files = sorted(folder.glob(pattern))
    if not files:
        raise FileNotFoundError(f"no {pattern} in {folder}")
    return files[0]


def read_idx(path: Path) -> torch.Tensor:
    """Read an IDX file of bytes: 0, 0, 8, the number of sizes, the sizes, the values."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of bytes")
    sizes = struct.unpack_from(f">{data[3]}I", data, offset=4)
    values = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=4 + 4 * len(sizes))
    return values.reshape(sizes)


class DigitNet(nn.Sequential):
    """Two convolutions and a linear layer: `(batch, 1, height, width) uint8` to 10 scores."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        super().__init__(
            nn.Conv2d(1, channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * channels * (height // 4) * (width // 4), 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the scores of the ten digits for each image."""
        return super().forward(images.float() / 255)


def finish_epoch(
    folder: Path, model: nn.Module, test: Digits, loss: float, history: list[dict[str, float]]
) -> None:
    """Save the model with its results, add these to the history, and print them."""
    test_accuracy = accuracy(model, test)
    history.append({"epoch": len(history) + 1, "loss": loss, "test_accuracy": test_accuracy})
    print("epoch {epoch}: loss {loss:.4f}, test accuracy {test_accuracy:.4f}".format(**history[-1]))
    save_results(folder, model, test_accuracy, history)


@torch.inference_mode()
def accuracy(model: nn.Module, test: Digits) -> float:
    """Return the share of digits that the model tells right."""
    batches = test.split(1000)
    num_right = sum((model(images).argmax(1) == labels).sum().item() for images, labels in batches)
    return num_right / len(test.labels)


def save_results(
    folder: Path, model: nn.Module, test_accuracy: float, history: list[dict[str, float]]
) -> None:
    """Write model.pt and metrics.json so that no reader ever sees half a file."""
    last_epoch = history[-1] if history else {}
    metrics = {**last_epoch, "test_accuracy": test_accuracy, "history": history}
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: values.cpu() for name, values in model.state_dict().items()}
    torch.save(weights, folder / "model.pt.part")
    (folder / "model.pt.part").replace(folder / "model.pt")
    (folder / "metrics.json.part").write_text(json.dumps(metrics, indent=2) + "\n")
    (folder / "metrics.json.part").replace(folder / "metrics.json")
