"""The parts of bench_orchestration.py: imports, the start of a run, a queue, a run's calls."""

import os
import re
import resource
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import botocore.config
import botocore.session
from measuring import Verdict, wait_until
from orchestration_platform import SQLITE, Platform, running_platform, running_postgres
from running import NUM_RANKS, ROOT, Server, job_of, report_of, start_bare, start_flow
from storage_bed import Bed, running_store

_STEPPING = ROOT / "benchmarks" / "supervision_code" / "stepping.py"
_SMALL = ROOT / "benchmarks" / "orchestration_code" / "small.py"
_IMPORTS = ("import prefect", "from prefect import flow, task", "import flows.training_job")
_CALL = re.compile(rb'"[A-Z]+ /api/(?!logs/)')
_BUCKET = "bench"
_NUM_FILES = 500
_FILE_BYTES = 10_000
_MAX_IMPORT_RATIO = 1.3
_MAX_START_S = 8.0
_MAX_CALLS = 5.0
_NUM_AT_ONCE = 2
_COUNTED_MINUTES = 2


class Imports:
    """Imports in processes of their own, in turns, by the processor time that they take."""

    def __init__(self, folder: Path) -> None:
        self._env = os.environ | {"PREFECT_HOME": str(folder / "imports")}
        self._seconds: dict[str, list[float]] = {statement: [] for statement in _IMPORTS}

    def measure(self, num_turns: int) -> None:
        """Import each so many times."""
        for turn in range(num_turns):
            for statement in _IMPORTS if turn % 2 else _IMPORTS[::-1]:
                before = _children_cpu_s()
                command = [sys.executable, "-c", statement]
                subprocess.run(command, cwd=ROOT, env=self._env, check=True)
                self._seconds[statement].append(_children_cpu_s() - before)

    def verdict(self) -> Verdict:
        """Return what became of the promise."""
        prefect_s, _, ours_s = self._medians()
        promise = f"import of flows / import prefect, processor time ({ours_s:.2f} s)"
        return Verdict.at_most(promise, ours_s / prefect_s, _MAX_IMPORT_RATIO, "{:.2f}")

    def rows(self) -> list[tuple[str, str]]:
        """Return a row for each statement."""
        medians = zip(_IMPORTS, self._medians(), strict=True)
        return [(f"`{statement}`", f"{seconds:.2f} s") for statement, seconds in medians]

    def _medians(self) -> list[float]:
        return [statistics.median(seconds) for seconds in self._seconds.values()]


class Starts:
    """From ``run_deployment`` to the first step of all ranks, beside the script's own start.

    The input is in a store and was staged by the run before, which is not counted.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._total_s: list[float] = []
        self._own_s: list[float] = []
        self._parts_s: dict[str, list[float]] = {}

    def measure(self, num_rounds: int) -> None:
        """Make so many starts of each, in turns."""
        folder = self._folder / "starts"
        folder.mkdir()
        with running_store(folder / "store") as bed:
            env = bed.environment("http")
            _make_dataset(bed)
            worker_env = {name: env[name] for name in env if name.startswith("AWS_")}
            with running_platform(folder / "platform", SQLITE, 1, worker_env) as platform:
                self._start(platform, folder / "first")
                for number in range(num_rounds):
                    self._own_s.append(_start_bare(folder / f"bare-{number}"))
                    times = self._start(platform, folder / f"ours-{number}")
                    self._total_s.append(times[-1][1] - times[0][1])
                    for (_, begun), (name, ended) in pairwise(times):
                        self._parts_s.setdefault(name, []).append(ended - begun)
                    print(f"start {number + 1} of {num_rounds}", file=sys.stderr)

    def _start(self, platform: Platform, notes: Path) -> list[tuple[str, float]]:
        """Return when a run came to each of its points."""
        job = job_of(
            _STEPPING,
            notes / "output",
            inputs=[{"name": "data_url", "url": f"s3://{_BUCKET}/dataset/"}],
            hyperparameters={"notes": str(_finished(notes))},
        )
        begun_s = time.time()
        run_id = platform.submit(job)
        platform.wait([run_id])
        states = platform.times_of(run_id)
        return [
            ("", begun_s),
            ("a worker has taken the run", states["Pending"]),
            ("its process has imported all, and runs", states["Running"]),
            ("the ranks begin: check, staging, launcher", _last(notes, "begun")),
            ("their first step", _last(notes, "stepped")),
        ]

    def verdict(self) -> Verdict:
        """Return what became of the promise."""
        total_s, own_s = statistics.median(self._total_s), statistics.median(self._own_s)
        promise = f"from run_deployment to the first step ({total_s:.2f} s)"
        promise += f", less the script's own start ({own_s:.2f} s)"
        return Verdict.at_most(promise, total_s - own_s, _MAX_START_S, "{:.2f} s")

    def rows(self) -> list[tuple[str, str]]:
        """Return a row for each part of the way."""
        return [(name, f"{statistics.median(s):.2f} s") for name, s in self._parts_s.items()]


class Queue:
    """Small jobs, all submitted at once, on one worker that may have two runs."""

    def __init__(self, folder: Path, num_jobs: int) -> None:
        self._folder = folder
        self._num_jobs = num_jobs
        self.rows: list[tuple[str, ...]] = []

    def measure(self) -> None:
        """Run the queue on SQLite, and on PostgreSQL where it is."""
        with running_postgres() as postgres:
            for database in (SQLITE, postgres):
                if database is None:
                    self.rows.append(("PostgreSQL", "not on this machine", "", "", ""))
                    continue
                folder = self._folder / database.name.lower()
                with running_platform(folder, database, _NUM_AT_ONCE, {}) as platform:
                    self.rows.append((database.name, *self._run(platform, folder)))
                print(f"queue on {database.name}", file=sys.stderr)

    def _run(self, platform: Platform, folder: Path) -> tuple[str, ...]:
        outputs = folder / "outputs"
        cpu_s, begun_s = platform.server_cpu_s(), time.monotonic()
        run_ids = [platform.submit(self._job(outputs / str(i))) for i in range(self._num_jobs)]
        submitted_s = time.monotonic() - begun_s
        platform.wait(run_ids)
        seconds = time.monotonic() - begun_s
        used_s = platform.server_cpu_s() - cpu_s
        return (
            f"{submitted_s / self._num_jobs * 1000:.0f} ms",
            f"{self._num_jobs / seconds * 60:.1f}",
            f"{used_s / self._num_jobs:.2f} s",
            f"{100 * used_s / seconds:.0f} %",
        )

    @staticmethod
    def _job(output: Path) -> dict[str, Any]:
        return job_of(_SMALL, output, launcher="single", resources={"processes_per_node": 1})


class Load:
    """The calls of the server's API that a run makes when it has been training for a while."""

    def __init__(self, folder: Path, server: Server) -> None:
        self._place = folder / "load"
        self._server = server
        self._minutes = 0.0
        self._calls_a_minute = 0.0

    def measure(self, minutes: float) -> None:
        """Train for so long and count the calls of the last minutes."""
        self._place.mkdir()
        job = job_of(_STEPPING, self._place / "output", hyperparameters={"notes": str(self._place)})
        process = start_flow(self._place, job, self._server.api_url)
        wait_until(lambda: len(list(self._place.glob("stepped-*"))) == NUM_RANKS, "the first step")
        counted_minutes = min(minutes, _COUNTED_MINUTES)
        time.sleep((minutes - counted_minutes) * 60)
        size = self._server.log.stat().st_size
        time.sleep(counted_minutes * 60)
        calls = self._server.log.read_bytes()[size:]
        (self._place / "finish").touch()
        report_of(process, self._place)
        self._minutes = minutes
        self._calls_a_minute = len(_CALL.findall(calls)) / counted_minutes

    def verdict(self) -> Verdict:
        """Return what became of the promise."""
        promise = f"calls of the API a minute beside the log, {self._minutes:g} minutes after start"
        return Verdict.at_most(promise, self._calls_a_minute, _MAX_CALLS, "{:.1f}")


def _make_dataset(bed: Bed) -> None:
    """Put some hundred files into the store."""
    env = bed.environment("http")
    client: Any = botocore.session.Session().create_client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        region_name=env["AWS_REGION"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        config=botocore.config.Config(s3={"addressing_style": "path"}),
    )
    client.create_bucket(Bucket=_BUCKET)
    for number in range(_NUM_FILES):
        key = f"dataset/{number}.bin"
        client.put_object(Bucket=_BUCKET, Key=key, Body=os.urandom(_FILE_BYTES))
    client.close()


def _start_bare(notes: Path) -> float:
    """Return how long the script takes by itself to its first step."""
    _finished(notes)
    begun_s = time.time()
    start_bare(notes, _STEPPING, ["--notes", notes]).wait()
    return _last(notes, "stepped") - begun_s


def _finished(notes: Path) -> Path:
    """Make a folder of notes whose script ends after its first step."""
    notes.mkdir()
    (notes / "finish").touch()
    return notes


def _last(notes: Path, event: str) -> float:
    """Return when the slowest rank noted an event, as seconds since 1970."""
    return max(float(file.read_text()) for file in notes.glob(f"{event}-*-0"))


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
