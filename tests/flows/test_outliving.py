"""A flow goes on when nobody reads its output any more."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LOG_INTO_A_BROKEN_PIPE = """\
import logging, sys

from flows.outliving import outlive_worker
from prefect.logging.configuration import setup_logging
setup_logging()
outlive_worker()
logger = logging.getLogger("prefect.engine")
input()
for number in range(3):
    logger.warning("line %d", number)
open(sys.argv[1], "w").write("went on")
"""


def test_log_lines_that_nobody_reads_do_not_end_the_process(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    with subprocess.Popen(
        [sys.executable, "-c", LOG_INTO_A_BROKEN_PIPE, str(proof)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()

        process.stdin.write(b"\n")
        process.stdin.close()
        process.wait()

    assert proof.read_text() == "went on"
