"""What a run adds to bare torchrun: time of a step, and time of the whole by stage.

The same script with the same ranks and threads, under bare torchrun, under ``python -m flows run``
with Prefect's temporary server, and with a server that is running, in turns in one run. Prints the
table of results.md: ``python benchmarks/bench_launch.py [--rounds 5] [--steps 300]``
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from measuring import machine, print_markdown, tenth_percentile
from running import NUM_RANKS, ROOT, job_of, report_of, running_server, start_bare, start_flow

SCRIPT = ROOT / "benchmarks" / "launch_code" / "steps.py"


@dataclass
class Series:
    """The measurements of one way to start the script, in seconds.

    Attributes:
        name: What the table calls it.
        step_s: Every step of all rounds.
        whole_s: The whole process, a value a round.
        stages_s: The stages of a run, a value a round each.
    """

    name: str
    step_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    stages_s: dict[str, list[float]] = field(default_factory=dict)


def main() -> None:
    """Measure in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()

    bare, temporary, running = (
        Series("bare torchrun"),
        Series("flows run, temporary server"),
        Series("flows run, running server"),
    )
    with tempfile.TemporaryDirectory() as name, running_server(Path(name)) as server:
        folder = Path(name)
        for number in range(args.rounds):
            # The order turns, so that no way always comes after the same other.
            ways = [(bare, None), (temporary, ""), (running, server.api_url)]
            for series, api_url in ways[number % 3 :] + ways[: number % 3]:
                place = folder / f"{number}-{series.name.replace(' ', '-')}"
                measure(series, place, args.steps, api_url)
                print(f"round {number + 1}: {series.name}", file=sys.stderr)
    print(f"{NUM_RANKS} gloo ranks, {args.steps} steps, {args.rounds} rounds; {machine()}\n")
    print_tables(bare, [temporary, running])


def measure(series: Series, place: Path, steps: int, api_url: str | None) -> None:
    """Run the script once; `api_url` None: bare torchrun, empty: the temporary server."""
    place.mkdir()
    output = place / "output"
    begun = time.perf_counter()
    if api_url is None:
        output.mkdir()
        # Its exit code is not looked at: with torch 2.13 a rank that has finished sometimes aborts
        # while Python exits (https://github.com/pytorch/pytorch/issues/190489). The file with the
        # result must be there.
        start_bare(place, SCRIPT, ["--train_url", output, "--steps", steps]).wait()
    else:
        job = job_of(SCRIPT, output, hyperparameters={"steps": steps})
        report = report_of(start_flow(place, job, api_url), place)
        for stage in report["stages"]:
            series.stages_s.setdefault(stage["name"], []).append(stage["seconds"])
    series.whole_s.append(time.perf_counter() - begun)
    series.step_s += json.loads((output / "steps.json").read_text())


def print_tables(bare: Series, wrapped: list[Series]) -> None:
    """Print the steps of all rounds and the median whole, against bare torchrun.

    The 10th percentile is a step that nothing else on the machine disturbed; the mean has it all.
    """
    p10_s, mean_s = tenth_percentile(bare.step_s), statistics.mean(bare.step_s)
    whole_s = statistics.median(bare.whole_s)
    rows = []
    for series in (bare, *wrapped):
        p10, mean = tenth_percentile(series.step_s), statistics.mean(series.step_s)
        whole = statistics.median(series.whole_s)
        p10_cells = (f"{p10 * 1000:.2f} ms", f"{p10 / p10_s:.3f}")
        mean_cells = (f"{mean * 1000:.2f} ms", f"{mean / mean_s:.3f}")
        rows.append(
            (series.name, *p10_cells, *mean_cells, f"{whole:.2f} s", f"{whole - whole_s:+.2f} s")
        )
    head = ("", "step, 10th percentile", "/ bare", "step, mean", "/ bare", "whole", "added")
    print_markdown(head, rows)
    print_markdown(("added by", *(series.name for series in wrapped)), added_rows(wrapped, whole_s))


def added_rows(wrapped: list[Series], whole_s: float) -> list[list[str]]:
    """Return what each stage and the rest add to the whole of bare torchrun, a row each."""
    rows = []
    stages = list(wrapped[0].stages_s)
    for stage in stages:
        times = [statistics.median(series.stages_s[stage]) for series in wrapped]
        if stage == "train":
            times = [time_s - whole_s for time_s in times]
        name = "train, beyond bare torchrun" if stage == "train" else stage
        rows.append([name, *(f"{time_s:+.2f} s" for time_s in times)])
    rest = [
        statistics.median(series.whole_s)
        - sum(statistics.median(series.stages_s[stage]) for stage in stages)
        for series in wrapped
    ]
    rows.append(["Python, Prefect, server", *(f"{time_s:+.2f} s" for time_s in rest)])
    return rows


if __name__ == "__main__":
    main()
