"""The time of a step with everything on against bare torchrun, and what our processes use.

Both trainings are there at the same time, and one of them is stopped by SIGSTOP, all its processes
included, while the other has its turn. So both see the same machine, whatever else runs on it.
"""

import json
import os
import re
import signal
import statistics
import subprocess
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from measuring import Verdict, tenth_percentile
from running import ROOT, Server, job_of, report_of, start_bare, start_flow
from usage import Used, peak_mb, usage_rows, use_of, used_by

_SCRIPT = ROOT / "benchmarks" / "supervision_code" / "noisy.py"
_CALL = re.compile(rb'"[A-Z]+ /api/(?!logs/)')
_TURN_S = 2.0
_LONG_TURN_S = 8.0  # ours: what is done by the clock is to come nearly as seldom as it would
_SETTLE_S = 0.2
_START_TIMEOUT_S = 120.0
_MAX_RATIO = 1.02
_MAX_SUPERVISOR_MB = 60.0


@dataclass
class _Arm:
    """One of the trainings.

    Attributes:
        process: The uppermost of its processes.
        place: Its folder.
        turn_s: How long it has the machine, in seconds.
        turns: From when to when it had the machine, as monotonic seconds.
    """

    process: subprocess.Popen[bytes]
    place: Path
    turn_s: float
    turns: list[tuple[float, float]] = field(default_factory=list)

    def wait_until_warm(self) -> None:
        """Wait for the first steps."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not (self.place / "warm").exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no steps in {self.place}: {self.process.returncode}")
            time.sleep(0.01)

    def take_turn(self) -> None:
        """Go on for a while."""
        self.send(signal.SIGCONT)
        begun = time.monotonic() + _SETTLE_S
        time.sleep(_SETTLE_S + self.turn_s)
        self.turns.append((begun, time.monotonic()))
        self.send(signal.SIGSTOP)

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to every process of the training."""
        for pid in used_by(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signum)

    def steps_s(self) -> list[list[float]]:
        """Return the times of the steps that were within a turn, a list a turn."""
        times = json.loads((self.place / "train_url" / "steps.json").read_text())
        return [
            [ended - begun for begun, ended in times if first <= begun and ended <= last]
            for first, last in self.turns
        ]


class Steps:
    """Trains under bare torchrun and as a job, in turns.

    Args:
        folder: Where to work.
        server: A Prefect server that notes the calls of its API.

    Attributes:
        usage_rows: What our processes and the server used, a row each.
        calls_a_minute: How often the API was called, beside the log.
    """

    def __init__(self, folder: Path, server: Server) -> None:
        self._folder = folder
        self._server = server
        self._bare_s: list[list[float]] = []
        self._ours_s: list[list[float]] = []
        self._supervisor_mb = 0.0
        self.usage_rows: list[tuple[str, str, str]] = []
        self.calls_a_minute = 0.0

    def measure(self, num_turns: int) -> None:
        """Give each training so many turns."""
        with ExitStack() as stack:
            bare, ours = self._start_bare(stack), self._start_ours(stack)
            for arm in (bare, ours):
                arm.wait_until_warm()
            bare.send(signal.SIGSTOP)
            ours.send(signal.SIGSTOP)
            first, log_size = self._used(ours), self._server.log.stat().st_size
            for turn in range(num_turns):
                for arm in (bare, ours) if turn % 2 else (ours, bare):
                    arm.take_turn()
            last, calls = self._used(ours), self._server.log.read_bytes()[log_size:]
            for arm in (bare, ours):
                (arm.place / "finish").touch()
                arm.send(signal.SIGCONT)
            bare.process.wait()  # its exit code is not looked at, as in bench_launch.py
            report_of(ours.process, ours.place)
        self._bare_s, self._ours_s = bare.steps_s(), ours.steps_s()
        self._supervisor_mb = peak_mb(last, "supervisor")
        seconds = sum(end - begin + _SETTLE_S for begin, end in ours.turns)
        self.usage_rows = usage_rows(first, last, seconds)
        self.calls_a_minute = len(_CALL.findall(calls)) / seconds * 60

    def _used(self, arm: _Arm) -> dict[int, Used]:
        server = self._server.pid
        return used_by(arm.process.pid) | {server: use_of(server, "server, idle too")}

    def _start_bare(self, stack: ExitStack) -> _Arm:
        place = self._folder / "steps-bare"
        words: list[object] = ["--notes", place]
        for name in ("train_url", "checkpoint_dir"):
            (place / name).mkdir(parents=True)
            words += [f"--{name}", place / name]
        return _ending(_Arm(start_bare(place, _SCRIPT, words), place, _TURN_S), stack)

    def _start_ours(self, stack: ExitStack) -> _Arm:
        place = self._folder / "steps-ours"
        place.mkdir()
        job = job_of(
            _SCRIPT,
            place / "train_url",
            checkpoints={"url": str(place / "checkpoints")},
            logs={"url": str(place / "logs")},
            metrics=[{"name": "printed_loss", "regex": "loss=([0-9.e+-]+)"}],
            hyperparameters={"notes": str(place)},
            limits={
                "auto_stop": "1h",
                "stall": "10m",
                "auto_restart": 1,
                "target": {"metric": "printed_loss", "at_most": -1.0},
            },
        )
        return _ending(
            _Arm(start_flow(place, job, self._server.api_url), place, _LONG_TURN_S), stack
        )

    def verdicts(self) -> list[Verdict]:
        """Return what became of the promises."""
        ours_s, bare_s = list(chain(*self._ours_s)), list(chain(*self._bare_s))
        p10_s, bare_p10_s = tenth_percentile(ours_s), tenth_percentile(bare_s)
        mean_s, bare_mean_s = statistics.mean(ours_s), statistics.mean(bare_s)
        ratios = [
            statistics.mean(ours) / statistics.mean(bare)
            for ours, bare in zip(self._ours_s, self._bare_s, strict=True)
        ]
        p10 = f"step / bare, 10th percentile ({p10_s * 1000:.2f} / {bare_p10_s * 1000:.2f} ms)"
        mean = f"step / bare, mean ({mean_s * 1000:.2f} / {bare_mean_s * 1000:.2f} ms)"
        pairs = f"step / bare, mean, median of {len(ratios)} pairs of turns"
        return [
            Verdict.at_most(p10, p10_s / bare_p10_s, _MAX_RATIO, "{:.3f}"),
            Verdict.at_most(mean, mean_s / bare_mean_s, _MAX_RATIO, "{:.3f}"),
            Verdict.at_most(pairs, statistics.median(ratios), _MAX_RATIO, "{:.3f}"),
            Verdict.at_most(
                "memory of the supervisor", self._supervisor_mb, _MAX_SUPERVISOR_MB, "{:.1f} MB"
            ),
        ]


def _ending(arm: _Arm, stack: ExitStack) -> _Arm:
    """Have the processes of a training killed if it has not ended by itself."""
    stack.callback(arm.send, signal.SIGKILL)
    return arm
