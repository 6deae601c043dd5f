"""The time of a step with everything on against bare torchrun, and what our processes use."""

import json
import statistics
from pathlib import Path

from measuring import Verdict, tenth_percentile
from running import ROOT, job_of, report_of, start_bare, start_flow
from usage import Usage

_SCRIPT = ROOT / "benchmarks" / "supervision_code" / "noisy.py"
_MAX_RATIO = 1.02
_MAX_SUPERVISOR_MB = 60.0


class Steps:
    """Trains under bare torchrun and as a job, once each a round.

    Args:
        folder: Where to work.
        api_url: A Prefect server.
        num_steps: How many steps to time.

    Attributes:
        usage: What the processes of the job used while the ranks stepped.
    """

    def __init__(self, folder: Path, api_url: str, num_steps: int) -> None:
        self.usage = Usage()
        self._folder = folder
        self._api_url = api_url
        self._num_steps = num_steps
        self._bare_s: list[float] = []
        self._ours_s: list[float] = []

    def measure(self, number: int) -> None:
        """Make a round."""
        arms = [self._measure_bare, self._measure_ours]
        for arm in arms if number % 2 else reversed(arms):
            place = self._folder / f"steps-{number}-{arm.__name__}"
            place.mkdir()
            arm(place)
            step_s = json.loads((place / "train_url" / "steps.json").read_text())
            (self._bare_s if arm == self._measure_bare else self._ours_s).extend(step_s)

    def _measure_bare(self, place: Path) -> None:
        words: list[object] = ["--notes", place, "--steps", self._num_steps]
        for name in ("train_url", "checkpoint_dir"):
            (place / name).mkdir()
            words += [f"--{name}", place / name]
        process = start_bare(place, _SCRIPT, words)
        # Looked at as ours is: looking costs time too.
        Usage().watch(process, place / "warm", place / "done")
        process.wait()  # its exit code is not looked at, as in bench_launch.py

    def _measure_ours(self, place: Path) -> None:
        job = job_of(
            _SCRIPT,
            place / "train_url",
            checkpoints={"url": str(place / "checkpoints")},
            logs={"url": str(place / "logs")},
            metrics=[{"name": "printed_loss", "regex": "loss=([0-9.e+-]+)"}],
            hyperparameters={"notes": str(place), "steps": self._num_steps},
            limits={
                "auto_stop": "1h",
                "stall": "10m",
                "auto_restart": 1,
                "target": {"metric": "printed_loss", "at_most": -1.0},
            },
        )
        process = start_flow(place, job, self._api_url)
        self.usage.watch(process, place / "warm", place / "done")
        report_of(process, place)

    def verdicts(self) -> list[Verdict]:
        """Return what became of the promises."""
        p10_s, bare_p10_s = tenth_percentile(self._ours_s), tenth_percentile(self._bare_s)
        mean_s, bare_mean_s = statistics.mean(self._ours_s), statistics.mean(self._bare_s)
        memory_mb = max(self.usage.peaks_mb["supervisor"])
        p10 = f"step / bare, 10th percentile ({p10_s * 1000:.2f} / {bare_p10_s * 1000:.2f} ms)"
        mean = f"step / bare, mean ({mean_s * 1000:.2f} / {bare_mean_s * 1000:.2f} ms)"
        return [
            Verdict.at_most(p10, p10_s / bare_p10_s, _MAX_RATIO, "{:.3f}"),
            Verdict.at_most(mean, mean_s / bare_mean_s, _MAX_RATIO, "{:.3f}"),
            Verdict.at_most("memory of the supervisor", memory_mb, _MAX_SUPERVISOR_MB, "{:.1f} MB"),
        ]
