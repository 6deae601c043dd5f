"""Ranks without torch that step until they may leave: bench_supervision.py, bench_orchestration.py.

They note when they began and made their first step: ``begun-RANK-ATTEMPT``, ``stepped-…``.
"""

import time

BEGUN_S = time.time()

import argparse  # noqa: E402 - the time above is to be that of the first line
import os  # noqa: E402
import signal  # noqa: E402
from pathlib import Path  # noqa: E402

from trainjob import progress  # noqa: E402


def main() -> None:
    """Step until there is a file ``finish`` among the notes, or the rank is asked to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--notes", type=Path, required=True)
    parser.add_argument("--data_url")
    parser.add_argument("--train_url", type=Path)
    parser.add_argument("--checkpoint_dir")
    parser.add_argument("--when_stopped", choices=("leave", "ignore"), default="leave")
    args = parser.parse_args()

    rank = os.environ["RANK"]
    attempt = len(list(args.notes.glob(f"begun-{rank}-*")))
    (args.notes / f"begun-{rank}-{attempt}").write_text(repr(BEGUN_S))
    if args.when_stopped == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    for step in range(1, 1_000_000):
        progress.report(step)
        if step == 1:
            (args.notes / f"pid-{rank}-{attempt}").write_text(str(os.getpid()))
            (args.notes / f"run-{rank}-{attempt}").write_text(os.environ.get("TRAINJOB_RUN_ID", ""))
            (args.notes / f"stepped-{rank}-{attempt}").write_text(repr(time.time()))
        is_asked = progress.should_stop() and args.when_stopped == "leave"
        if is_asked or (args.notes / "finish").exists():
            break
        time.sleep(0.01)
    if args.train_url:
        (args.train_url / f"rank-{rank}.txt").write_text("a run has to have an output")


if __name__ == "__main__":
    main()
