"""What only our stager does: a second job on the same data, and going on after a kill."""

import json
import os
import subprocess
import time
from pathlib import Path

from measuring import Verdict
from storage_runs import Runs, Workload
from storage_tools import our_command

_MAX_SECOND_S = 0.3
_KILL_AT = 0.5
_UNDER_WAY = 256 + 256
"""Files that a killed process had begun and not noted: one a connection, and as many that wait."""


class SecondJobs:
    """Stages the same data again from the cache, which has to move nothing."""

    def __init__(self, runs: Runs, workload: Workload, rounds: int) -> None:
        runs.prepare(workload)
        self._seconds: list[float] = []
        self._moved_bytes: list[int] = []
        place = runs.place("second")
        cache = {"TRAINJOB_CACHE_DIR": str(place / "cache")}
        for number in range(rounds + 1):
            command = our_command("job", runs.url(workload), place / f"job-{number}")
            said = json.loads(runs.run(command, "http", cache).output)
            if number:
                self._seconds.append(said["seconds"])
                self._moved_bytes.append(said["moved_bytes"])
        self._files = workload.num_files

    def verdicts(self) -> list[Verdict]:
        """Return what became of the promises."""
        name = f"a second job on the same {self._files:,} files"
        return [
            Verdict.at_most(f"{name}, bytes moved", max(self._moved_bytes), 0, "{:,.0f} B"),
            Verdict.at_most(
                f"{name}, after the imports", min(self._seconds), _MAX_SECOND_S, "{:.2f} s"
            ),
        ]


class Resumes:
    """Kills a stager when half of the data is there, and lets another one go on."""

    def __init__(self, runs: Runs, workload: Workload, rounds: int) -> None:
        runs.prepare(workload)
        self._workload = workload
        self._fetched: list[int] = []
        self._left: list[int] = []
        self._exact: list[bool] = []
        for _ in range(rounds):
            place = runs.place("resume")
            cache = {"TRAINJOB_CACHE_DIR": str(place / "cache")}
            command = our_command("down", runs.url(workload), place / "target")
            there = self._kill_half_way(runs, command, cache, place)
            said = json.loads(runs.run(command, "http", cache).output)
            self._left.append(workload.num_files - there)
            self._fetched.append(said["moved_bytes"] // workload.size_bytes)
            self._exact.append(runs.is_same(workload, place / "target"))

    def verdicts(self) -> list[Verdict]:
        """Return what became of the promises."""
        pairs = list(zip(self._fetched, self._left, strict=True))
        worst = max(fetched - left for fetched, left in pairs)
        counts = ", ".join(f"{fetched:,} of {left:,} that were left" for fetched, left in pairs)
        exact = f"{sum(self._exact)} of {len(self._exact)}"
        return [
            Verdict.at_most(
                f"after kill -9, files fetched again ({counts})", worst, _UNDER_WAY, "{:,.0f}"
            ),
            Verdict("after kill -9, the tree is exact", exact, "all", all(self._exact)),
        ]

    def _kill_half_way(
        self, runs: Runs, command: list[str], cache: dict[str, str], place: Path
    ) -> int:
        """Return how many files were there when it was killed."""
        env = runs.environment("http") | cache
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, cwd=place)
        while process.poll() is None:
            if _num_files(place / "cache") >= _KILL_AT * self._workload.num_files:
                process.kill()
                break
            time.sleep(0.05)
        process.wait()
        return _num_files(place / "cache")


def _num_files(folder: Path) -> int:
    """Return how many files of the data are below a folder."""
    return sum(name.endswith(".bin") for _, _, names in os.walk(folder) for name in names)
