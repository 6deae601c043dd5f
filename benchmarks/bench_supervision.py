"""What supervision costs, and how fast it restarts and stops: each promise beside its limit.

The same scripts with the same ranks and threads under bare torchrun and as jobs with everything
on, in turns in one run: ``python benchmarks/bench_supervision.py [--rounds 3] [--turns 30]``. With
the defaults it takes about six minutes.
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
step and saves a checkpoint every 100; metrics by regex, stall, target, auto_stop, auto_restart \
are on, and checkpoints, logs and outputs are kept in folders of this machine. Bare torchrun \
writes to a file. Both trainings are there at once, and one is stopped while the other has its \
turn: ours 8 s, the other 2 s, so what is done by the clock comes 1.25 times as often as it would. \
Everything else: medians of all rounds, in turns, the order turning. The server runs here too.
"""


def main() -> None:
    """Measure in turns and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=30, help="of each training, for the steps")
    args = parser.parse_args()

    with (
        tempfile.TemporaryDirectory() as name,
        running_server(Path(name), notes_calls=True) as server,
    ):
        folder, url = Path(name), server.api_url
        steps, starts, restarts = Steps(folder, server), Starts(folder), Restarts(folder, url)
        cancels, writes = Cancels(folder, url), Writes(folder, url)
        steps.measure(args.turns)
        print("steps", file=sys.stderr)
        for number in range(args.rounds):
            for part in (starts, writes, cancels):
                part.measure(number)
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
        restarts.measure(args.rounds)

    print(f"{NUM_RANKS} ranks, {args.turns} turns, {args.rounds} rounds; {machine()}\n")
    print(_METHOD)
    print_verdicts(
        [
            *steps.verdicts(),
            *starts.verdicts(),
            restarts.verdict(starts.own_s),
            *cancels.verdicts(),
            *writes.verdicts(),
        ]
    )
    print_markdown(("while the ranks step", "share of a core", "most memory"), steps.usage_rows)
    print(f"Calls of the server's API beside the log: {steps.calls_a_minute:.1f} a minute")


if __name__ == "__main__":
    main()
