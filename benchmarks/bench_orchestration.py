"""What the platform around a training costs: imports, starts, queues, and calls of the API.

``python benchmarks/bench_orchestration.py [--turns 5] [--rounds 3] [--jobs 50]`` takes about six
minutes on two cores. The calls of a run become fewer with its age, so counting them takes a
quarter of an hour and is asked for by itself: ``--load-minutes 14`` measures nothing else.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from measuring import machine, print_markdown, print_verdicts
from orchestration_parts import Imports, Load, Queue, Starts
from running import running_server

_METHOD = """\
Server, database, worker and jobs share the machine. Imports: processor time, medians, in turns. \
Starts: from the call of run_deployment on a server with SQLite whose worker asks every 2 s to the \
first step of the slowest rank, a channel of 500 files from an S3 store in the cache; medians, in \
turns with the script under bare torchrun. Queues: jobs of one process that write a file, \
submitted one by one, on a worker with --limit 2; the server's share is that of one core, \
PostgreSQL with its processes.
"""


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="of the imports")
    parser.add_argument("--rounds", type=int, default=3, help="of the starts")
    parser.add_argument("--jobs", type=int, default=50, help="in each queue")
    parser.add_argument("--load-minutes", type=float, help="count the calls of a run of this age")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.load_minutes is not None:
            _measure_load(folder, args.load_minutes)
            return
        imports, starts, queue = Imports(folder), Starts(folder), Queue(folder, args.jobs)
        imports.measure(args.turns)
        print("imports", file=sys.stderr)
        starts.measure(args.rounds)
        queue.measure()
    print(f"{args.turns} turns, {args.rounds} rounds, {args.jobs} jobs; {machine()}\n")
    print(_METHOD)
    print_verdicts([imports.verdict(), starts.verdict()])
    print_markdown(("import", "processor time"), imports.rows())
    print_markdown(("from run_deployment, each after the one before", "median"), starts.rows())
    head = ("server on", "a call of run_deployment", "jobs a minute", "server a job", "of a core")
    print_markdown(head, queue.rows)


def _measure_load(folder: Path, minutes: float) -> None:
    with running_server(folder, notes_calls=True) as server:
        load = Load(folder, server)
        load.measure(minutes)
    print(f"{machine()}\n")
    print_verdicts([load.verdict()])


if __name__ == "__main__":
    main()
