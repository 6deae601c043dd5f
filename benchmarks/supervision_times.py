"""How long ranks take to start, to start again after one was killed, and to be gone when stopped.

The ranks are those of a script without torch, so that little of the time is its own.
"""

import os
import signal
import statistics
import time
import uuid
from pathlib import Path

from measuring import Verdict, tenth_percentile, wait_until
from running import NUM_RANKS, ROOT, job_of, report_of, start_bare, start_flow
from usage import is_marked

from trainjob.launch.launch import Launch
from trainjob.launch.training import Control, run_training

_SCRIPT = ROOT / "benchmarks" / "supervision_code" / "stepping.py"
_MAX_START_RATIO = 1.1
_MAX_RESTART_S = 5.0
_GRACE_S = 3.0
_MAX_AFTER_GRACE_S = 2.0


class Starts:
    """Starts two ranks under bare torchrun and under the supervisor, in turns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bare_s: list[float] = []
        self._ours_s: list[float] = []
        self._bare_step_s: list[float] = []

    def measure(self, number: int) -> None:
        """Make a round of four starts each."""
        pair = ("bare", "ours") if number % 2 else ("ours", "bare")
        for arm in 2 * (*pair, *pair[::-1]):
            notes = self._folder / f"start-{uuid.uuid4().hex}"
            notes.mkdir()
            (notes / "finish").touch()
            begun_s = time.time()
            if arm == "bare":
                start_bare(notes, _SCRIPT, ["--notes", notes]).wait()
                self._bare_s.append(_last(notes, "begun") - begun_s)
                self._bare_step_s.append(_last(notes, "stepped") - begun_s)
            else:
                run_training(_launch(notes), Control())
                self._ours_s.append(_last(notes, "begun") - begun_s)

    @property
    def own_s(self) -> float:
        """How long the script takes from the start of torchrun to its first step."""
        return statistics.median(self._bare_step_s)

    def verdicts(self) -> list[Verdict]:
        """Return what became of the promise."""
        verdicts = []
        for name, of in (("10th percentile", tenth_percentile), ("median", statistics.median)):
            ours_s, bare_s = of(self._ours_s), of(self._bare_s)
            promise = f"start of {NUM_RANKS} ranks / bare, {name} ({ours_s:.2f} / {bare_s:.2f} s)"
            verdicts.append(Verdict.at_most(promise, ours_s / bare_s, _MAX_START_RATIO, "{:.3f}"))
        return verdicts


class Restarts:
    """Kills a rank of a job again and again."""

    def __init__(self, folder: Path, api_url: str) -> None:
        self._notes = folder / "restarts"
        self._api_url = api_url
        self._seconds: list[float] = []

    def measure(self, num_kills: int) -> None:
        """Run a job in which a rank is killed so many times."""
        notes = self._notes
        notes.mkdir()
        job = job_of(
            _SCRIPT,
            notes / "output",
            checkpoints={"url": str(notes / "checkpoints")},
            limits={"auto_restart": num_kills},
            hyperparameters={"notes": str(notes)},
        )
        process = start_flow(notes, job, self._api_url)
        _wait_for_step(notes, 0)
        for attempt in range(num_kills):
            killed_s = time.time()
            os.kill(int((notes / f"pid-{attempt % NUM_RANKS}-{attempt}").read_text()), 9)
            _wait_for_step(notes, attempt + 1)
            self._seconds.append(_last(notes, "stepped", attempt + 1) - killed_s)
        (notes / "finish").touch()
        report_of(process, notes)

    def verdict(self, own_s: float) -> Verdict:
        """Return what became of the promise.

        Args:
            own_s: How long the script takes by itself to its first step.
        """
        seconds = statistics.median(self._seconds)
        promise = f"from a SIGKILL to stepping again ({seconds:.2f} s) less the script's own start"
        return Verdict.at_most(
            f"{promise} ({own_s:.2f} s)", seconds - own_s, _MAX_RESTART_S, "{:.2f} s"
        )


class Cancels:
    """Stops jobs whose ranks leave when they are asked to, and whose ranks do not."""

    def __init__(self, folder: Path, api_url: str) -> None:
        self._folder = folder
        self._api_url = api_url
        self._gone_s: dict[str, list[float]] = {"leave": [], "ignore": []}
        self._ended_s: dict[str, list[float]] = {"leave": [], "ignore": []}

    def measure(self, number: int) -> None:
        """Stop a job of each kind."""
        for kind in self._gone_s:
            self._stop(kind, self._folder / f"cancel-{kind}-{number}")

    def _stop(self, kind: str, notes: Path) -> None:
        notes.mkdir()
        job = job_of(
            _SCRIPT,
            notes / "output",
            limits={"grace": f"{_GRACE_S:.0f}s"},
            hyperparameters={"notes": str(notes), "when_stopped": kind},
        )
        process = start_flow(notes, job, self._api_url)
        _wait_for_step(notes, 0)
        run_id = (notes / "run-0-0").read_text()
        asked_s = time.time()
        process.send_signal(signal.SIGTERM)
        gone_s = wait_until(lambda: not is_marked(run_id), "the end of all ranks")
        process.wait()
        self._gone_s[kind].append(gone_s - asked_s)
        self._ended_s[kind].append(time.time() - asked_s)

    def verdicts(self) -> list[Verdict]:
        """Return what became of the promises."""
        verdicts = []
        for kind, gone_s in self._gone_s.items():
            ended_s = statistics.median(self._ended_s[kind])
            promise = f"from cancel to no process, ranks that {kind} (the command: {ended_s:.2f} s)"
            limit_s = _GRACE_S + _MAX_AFTER_GRACE_S
            verdicts.append(
                Verdict.at_most(promise, statistics.median(gone_s), limit_s, "{:.2f} s")
            )
        return verdicts


def _launch(notes: Path) -> Launch:
    log_dir = notes / "logs"
    log_dir.mkdir()
    return Launch(
        run_id=notes.name,
        launcher="torchrun",
        world_size=NUM_RANKS,
        program=(_SCRIPT.name, "--notes", str(notes)),
        is_script=True,
        code_dir=_SCRIPT.parent,
        log_dir=log_dir,
        env={},
        device="cpu",
        cores=None,
        auto_stop_s=None,
        grace_s=_GRACE_S,
    )


def _wait_for_step(notes: Path, attempt: int) -> None:
    wait_until(
        lambda: len(list(notes.glob(f"stepped-*-{attempt}"))) == NUM_RANKS,
        f"the first step of attempt {attempt} in {notes}",
    )


def _last(notes: Path, event: str, attempt: int = 0) -> float:
    """Return when the slowest rank noted an event, as seconds since 1970."""
    return max(float(file.read_text()) for file in notes.glob(f"{event}-*-{attempt}"))
