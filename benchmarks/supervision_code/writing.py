"""A rank that writes 20 MB/s, and times its own writing; for bench_supervision.py."""

import argparse
import json
import os
import time
from pathlib import Path

LINES_A_TURN = 2000
TURN_S = 0.01
LINE = "x" * 99


def main() -> None:
    """Print lines of 100 bytes, and write the time that each turn of them took in seconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_url", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()

    if os.environ["RANK"] != "0":
        return
    seconds = []
    started = time.perf_counter()
    for turn in range(round(args.seconds / TURN_S)):
        begun = time.perf_counter()
        for _ in range(LINES_A_TURN):
            print(LINE)
        seconds.append(time.perf_counter() - begun)
        time.sleep(max(0.0, started + (turn + 1) * TURN_S - time.perf_counter()))
    whole_s = time.perf_counter() - started
    (args.train_url / "writes.json").write_text(json.dumps({"turns": seconds, "whole_s": whole_s}))


if __name__ == "__main__":
    main()
