"""Whether a rank that prints 20 MB/s is slowed by being logged."""

import json
import statistics
from pathlib import Path

from measuring import Verdict, tenth_percentile
from running import ROOT, job_of, report_of, start_bare, start_flow

_SCRIPT = ROOT / "benchmarks" / "supervision_code" / "writing.py"
_SECONDS = 5
_MB = 20 * _SECONDS
_MAX_RATIO = 1.05
_MIN_RATE = 19.8


class Writes:
    """Prints under bare torchrun into a file and as a job, once each a round.

    Python writes every line at once in both: that is a setting of Python, not of logging.
    """

    def __init__(self, folder: Path, api_url: str) -> None:
        self._folder = folder
        self._api_url = api_url
        self._bare_s: list[float] = []
        self._ours_s: list[float] = []
        self._whole_s: list[float] = []

    def measure(self, number: int) -> None:
        """Make a round."""
        for arm in ("bare", "ours") if number % 2 else ("ours", "bare"):
            place = self._folder / f"writes-{number}-{arm}"
            place.mkdir()
            output = place / "output"
            if arm == "bare":
                output.mkdir()
                words = ["--train_url", output, "--seconds", _SECONDS]
                start_bare(place, _SCRIPT, words, is_unbuffered=True).wait()
            else:
                job = job_of(_SCRIPT, output, hyperparameters={"seconds": _SECONDS})
                report_of(start_flow(place, job, self._api_url), place)
            said = json.loads((output / "writes.json").read_text())
            (self._bare_s if arm == "bare" else self._ours_s).extend(said["turns"])
            if arm == "ours":
                self._whole_s.append(said["whole_s"])

    def verdicts(self) -> list[Verdict]:
        """Return what became of the promises."""
        verdicts = []
        for name, of in (("10th percentile", tenth_percentile), ("mean", statistics.mean)):
            ours_s, bare_s = of(self._ours_s), of(self._bare_s)
            times = f"{ours_s * 1000:.2f} / {bare_s * 1000:.2f} ms"
            promise = f"printing 2,000 lines, 20 MB/s in all / bare, {name} ({times})"
            verdicts.append(Verdict.at_most(promise, ours_s / bare_s, _MAX_RATIO, "{:.3f}"))
        rate = _MB / statistics.median(self._whole_s)
        promise = "a rank that prints 20 MB/s keeps its rate"
        measured, limit = f"{rate:.2f} MB/s", f">= {_MIN_RATE} MB/s"
        return [*verdicts, Verdict(promise, measured, limit, rate >= _MIN_RATE)]
