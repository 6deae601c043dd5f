"""Small jobs on local folders for tests that are not about training."""

from pathlib import Path
from typing import Any

import yaml

COPY_SCRIPT = """\
import argparse, json, os, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--data_url", type=pathlib.Path)
parser.add_argument("--train_url", type=pathlib.Path)
parser.add_argument("--scale", type=int, default=1)
args = parser.parse_args()
value = int((args.data_url / "value.txt").read_text())
(args.train_url / "result.json").write_text(json.dumps(args.scale * value))
print("result", args.scale * value, flush=True)
"""


def make_job(folder: Path, script: str = COPY_SCRIPT, **changes: Any) -> dict[str, Any]:
    """Write code and data below `folder` and return a job on them as plain values."""
    code, data = folder / "code", folder / "data"
    code.mkdir(parents=True, exist_ok=True)
    data.mkdir(exist_ok=True)
    (code / "train.py").write_text(script)
    (data / "value.txt").write_text("21")
    job: dict[str, Any] = {
        "name": "copy",
        "algorithm": {"kind": "script", "code": {"url": str(code)}, "boot_file": "train.py"},
        "inputs": [{"name": "data_url", "url": str(data)}],
        "outputs": [{"name": "train_url", "url": str(folder / "out")}],
        "hyperparameters": {"scale": 2},
    }
    return job | changes


def write_job(folder: Path, script: str = COPY_SCRIPT, **changes: Any) -> Path:
    """Write such a job as a file and return its path."""
    file = folder / "job.yaml"
    job = make_job(folder, script, **changes)
    file.write_text(yaml.safe_dump(job, sort_keys=False))
    return file
