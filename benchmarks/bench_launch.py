"""What a run adds to bare torchrun: time of a step, and time of the whole by stage.

The same script with the same ranks and threads, under bare torchrun, under ``python -m flows run``
with Prefect's temporary server, and with a server that is running, in turns in one run. Prints the
table of results.md: ``python benchmarks/bench_launch.py [--rounds 5] [--steps 300]``
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
CODE = ROOT / "benchmarks" / "launch_code"
NUM_RANKS = 2


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
    with tempfile.TemporaryDirectory() as name, running_server(Path(name)) as url:
        folder = Path(name)
        for number in range(args.rounds):
            # The order turns, so that no way always comes after the same other.
            ways = [(bare, None), (temporary, ""), (running, url)]
            for series, api_url in ways[number % 3 :] + ways[: number % 3]:
                place = folder / f"{number}-{series.name.replace(' ', '-')}"
                measure(series, place, args.steps, api_url)
                print(f"round {number + 1}: {series.name}", file=sys.stderr)
    print_table(bare, [temporary, running], args.rounds, args.steps)


def measure(series: Series, place: Path, steps: int, api_url: str | None) -> None:
    """Run the script once; `api_url` None: bare torchrun, empty: the temporary server."""
    place.mkdir()
    begun = time.perf_counter()
    if api_url is None:
        run_bare(place, steps)
    else:
        report = run_flow(place, steps, api_url)
        for stage in report["stages"]:
            series.stages_s.setdefault(stage["name"], []).append(stage["seconds"])
    series.whole_s.append(time.perf_counter() - begun)
    series.step_s += json.loads((place / "steps.json").read_text())


def run_bare(place: Path, steps: int) -> None:
    """Run the script as torchrun does, with the threads that a run would give it."""
    threads = max(1, len(os.sched_getaffinity(0)) // NUM_RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(NUM_RANKS), str(CODE / "steps.py")]
    command += ["--train_url", str(place), "--steps", str(steps)]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    # Not checked: with torch 2.13 a rank that has finished sometimes aborts while Python exits
    # (https://github.com/pytorch/pytorch/issues/190489). The file with the result must be there.
    subprocess.run(command, env=env, check=False, capture_output=True)


def run_flow(place: Path, steps: int, api_url: str) -> dict[str, Any]:
    """Run the script as a job and return the report of the run."""
    job = {
        "name": "bench",
        "algorithm": {"code": {"url": str(CODE)}, "boot_file": "steps.py"},
        "outputs": [{"name": "train_url", "url": str(place)}],
        "hyperparameters": {"steps": steps},
        "resources": {"processes_per_node": NUM_RANKS},
        "launcher": "torchrun",
    }
    file = place.with_suffix(".json")
    file.write_text(json.dumps(job))
    env = os.environ | {
        "PREFECT_HOME": str(place.parent / "prefect"),
        "TRAINJOB_WORKDIR": str(place.parent / "runs"),
    }
    env.pop("PREFECT_API_URL", None)
    if api_url:
        env["PREFECT_API_URL"] = api_url
    command = [sys.executable, "-m", "flows", "run", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """Run a Prefect server with its data below `folder` and give its API url."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "PREFECT_HOME": str(folder / "server"),
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    command = [sys.executable, "-m", "prefect", "server", "start"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/api"
    try:
        deadline = time.monotonic() + 120
        while not is_healthy(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "server.log").read_text())
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def is_healthy(url: str) -> bool:
    """Tell whether a server answers at `url`."""
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.TransportError:
        return False


def tenth_percentile(values: list[float]) -> float:
    """Return the value that a tenth of the values is below."""
    return statistics.quantiles(values, n=10)[0]


def print_table(bare: Series, wrapped: list[Series], rounds: int, steps: int) -> None:
    """Print the steps of all rounds and the median whole, against bare torchrun.

    The 10th percentile is a step that nothing else on the machine disturbed; the mean has it all.
    """
    cores = len(os.sched_getaffinity(0))
    print(f"{NUM_RANKS} gloo ranks, {steps} steps, {rounds} rounds; ", end="")
    print(f"{cores} cores, Python {platform.python_version()}, {platform.machine()}\n")
    print("| | step, 10th percentile | / bare | step, mean | / bare | whole | added |")
    print("|---|---|---|---|---|---|---|")
    p10_s, mean_s = tenth_percentile(bare.step_s), statistics.mean(bare.step_s)
    whole_s = statistics.median(bare.whole_s)
    for series in (bare, *wrapped):
        p10, mean = tenth_percentile(series.step_s), statistics.mean(series.step_s)
        whole = statistics.median(series.whole_s)
        print(
            f"| {series.name} | {p10 * 1000:.2f} ms | {p10 / p10_s:.3f} "
            f"| {mean * 1000:.2f} ms | {mean / mean_s:.3f} "
            f"| {whole:.2f} s | {whole - whole_s:+.2f} s |"
        )
    print("\n| added by | " + " | ".join(series.name for series in wrapped) + " |")
    print("|---|" + "---|" * len(wrapped))
    stages = list(wrapped[0].stages_s)
    for stage in stages:
        times = [statistics.median(series.stages_s[stage]) for series in wrapped]
        if stage == "train":
            times = [time_s - whole_s for time_s in times]
        name = "train, beyond bare torchrun" if stage == "train" else stage
        print(f"| {name} | " + " | ".join(f"{time_s:+.2f} s" for time_s in times) + " |")
    rest = [
        statistics.median(series.whole_s)
        - sum(statistics.median(series.stages_s[stage]) for stage in stages)
        for series in wrapped
    ]
    print("| Python, Prefect, server | " + " | ".join(f"{time_s:+.2f} s" for time_s in rest) + " |")


if __name__ == "__main__":
    main()
