"""A program that only stages starts fast: what loading takes, ten thousand small files take too."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
STAGER = """
import sys
from trainjob.storage.stage import stage_channel
from trainjob.storage.store import open_store
open_store("s3://bucket/", None)
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"pydantic", "botocore"}))
"""


def test_what_stages_loads_neither_pydantic_nor_botocore() -> None:
    env = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "r"}
    env |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "PYTHONPATH": str(REPOSITORY)}

    loaded = subprocess.run(
        [sys.executable, "-c", STAGER], env=env, check=True, capture_output=True, text=True
    )

    assert loaded.stdout.split() == []
