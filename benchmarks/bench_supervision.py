"""What supervision costs, and how fast it restarts and stops: each promise beside its limit.

The same scripts with the same ranks and threads under bare torchrun and as jobs with everything
on, in turns in one run: ``python benchmarks/bench_supervision.py [--rounds 3] [--steps 1000]``.
With the defaults it takes about six minutes.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from measuring import machine, print_markdown, print_verdicts
from running import NUM_RANKS, running_server
from supervision_steps import Steps
from supervision_times import Cancels, Restarts, Starts
from supervision_writes import Writes

_METHOD = """\
Steps: a step is everything from one to the next; the script prints 2,000 lines/s, reports every \
step, saves a checkpoint every 100, and stall, target, auto_stop and auto_restart are on. \
Checkpoints, logs and outputs are kept in folders of this machine, the server runs on it too. \
Bare torchrun writes to a file. Arms in turns, the order turning; steps of all rounds together, \
medians of everything else.
"""


def main() -> None:
    """Measure in turns and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name, running_server(Path(name)) as server:
        folder, url = Path(name), server.api_url
        starts, steps, writes = Starts(folder), Steps(folder, url, args.steps), Writes(folder, url)
        restarts, cancels = Restarts(folder, url), Cancels(folder, url)
        for number in range(args.rounds):
            for part in (steps, starts, writes, cancels):
                part.measure(number)
                print(f"round {number + 1}: {type(part).__name__.lower()}", file=sys.stderr)
        restarts.measure(args.rounds)

    print(f"{NUM_RANKS} ranks, {args.steps} steps, {args.rounds} rounds; {machine()}\n")
    print(_METHOD)
    print_verdicts(
        [
            *steps.verdicts(),
            starts.verdict(),
            restarts.verdict(starts.own_s),
            *cancels.verdicts(),
            *writes.verdicts(),
        ]
    )
    print_markdown(("while the ranks step", "share of a core", "most memory"), steps.usage.rows())


if __name__ == "__main__":
    main()
