"""A DDP training loop that times its own steps, for bench_launch.py."""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

NUM_WARM_UP = 20


def main() -> None:
    """Train a fixed network on fixed data and write the time of every step in seconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_url", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, labels = torch.randn(1024, 784), torch.randint(10, (1024,))
    seconds = []
    for _ in range(NUM_WARM_UP + args.steps):
        begun = time.perf_counter()
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(inputs), labels))
        optimizer.step()
        seconds.append(time.perf_counter() - begun)
    if dist.get_rank() == 0:
        (args.train_url / "steps.json").write_text(json.dumps(seconds[NUM_WARM_UP:]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
