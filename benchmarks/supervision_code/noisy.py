"""A DDP training that prints, reports, saves and times its steps; for bench_supervision.py."""

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainjob import progress

NUM_WARM_UP = 20
MAX_STEPS = 1_000_000
LINES_A_SECOND = 2000
MAX_STEP_S = 0.1
SAVE_EVERY = 100


def main() -> None:
    """Train a fixed network on fixed data until told to finish; write when each step was.

    A step is all that the script does from one to the next: computing, reporting, printing, and
    saving in every hundredth. Times are those of the monotonic clock, in seconds.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_url", type=Path, required=True)
    parser.add_argument("--checkpoint_dir", type=Path, required=True)
    parser.add_argument("--notes", type=Path, required=True)
    args = parser.parse_args()

    dist.init_process_group("gloo")
    is_first = dist.get_rank() == 0
    torch.manual_seed(0)
    # Small enough for the caches of a core: what lies in memory is as fast as its place there.
    network = nn.Sequential(
        nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, labels = torch.randn(256, 256), torch.randint(10, (256,))
    times: list[tuple[float, float]] = []
    printer = Printer()
    for step in range(1, MAX_STEPS + 1):
        begun = time.monotonic()
        optimizer.zero_grad()
        with model.no_sync():
            for _ in range(7):
                torch.autograd.backward(nn.functional.cross_entropy(model(inputs), labels))
        loss = nn.functional.cross_entropy(model(inputs), labels)
        torch.autograd.backward(loss)
        optimizer.step()
        progress.report(step, MAX_STEPS, loss=loss.item())
        if is_first:
            printer.print_due(step, loss.item())
            if step % SAVE_EVERY == 0:
                save(network, args.checkpoint_dir / f"weights-{step % (2 * SAVE_EVERY)}.pt")
        times.append((begun, time.monotonic()))
        if is_first and step == NUM_WARM_UP:
            (args.notes / "warm").touch()
        if step % NUM_WARM_UP == 0 and all_are_to_finish(args.notes / "finish"):
            break
    if is_first:
        (args.train_url / "steps.json").write_text(json.dumps(times))
    dist.destroy_process_group()


def all_are_to_finish(file: Path) -> bool:
    """Let the first rank look for the file, so that all ranks leave after the same step."""
    is_there = torch.tensor(int(file.exists()))
    dist.broadcast(is_there, src=0)
    return bool(is_there.item())


class Printer:
    """Prints so many lines a second: one of a step with its loss, the rest of something else."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._num_due = 0.0
        self._num_printed = 0

    def print_due(self, step: int, loss: float) -> None:
        """Print the lines that are due at the end of a step."""
        print(f"step {step} loss={loss:.6f} lr=0.01")
        now = time.monotonic()
        # More than that is no step: the benchmark has stopped us for a while.
        self._num_due += min(now - self._last, MAX_STEP_S) * LINES_A_SECOND - 1
        self._last = now
        while self._num_due >= 1:
            self._num_due -= 1
            self._num_printed += 1
            print(f"[loader] sample {self._num_printed} of shard {step} read in 0.4 ms")


def save(network: nn.Module, file: Path) -> None:
    """Write the weights so that no reader sees half of them."""
    partial = file.with_suffix(f".{os.getpid()}.part")
    torch.save(network.state_dict(), partial)
    partial.replace(file)


if __name__ == "__main__":
    main()
