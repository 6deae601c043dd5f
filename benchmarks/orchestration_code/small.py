"""One of many small jobs, for bench_orchestration.py."""

import argparse
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--train_url", type=Path)
(parser.parse_args().train_url / "done.txt").write_text("a run has to have an output")
