"""What of the output of ranks goes to Prefect's log, which is a database."""

import logging
import time

import pytest

from tasks.train import _output_in_log
from trainjob.events import RankOutput, emit


def records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return what the run logged; other threads log too."""
    return [record for record in caplog.records if record.name == "run"]


def sent(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines of ranks that were logged."""
    lines = "\n".join(record.getMessage() for record in records(caplog)).split("\n")
    return [line for line in lines if line.startswith("[rank 0] ")]


def test_a_burst_is_sent_as_a_whole_in_a_few_records(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    with _output_in_log(logging.getLogger("run"), 0):
        emit(RankOutput(0, tuple(f"line {i}" for i in range(1000))))

    assert sent(caplog) == [f"[rank 0] line {i}" for i in range(1000)]
    assert len(records(caplog)) == 5


def test_of_output_without_end_the_last_lines_are_sent_and_the_rest_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    begun = time.monotonic()

    with _output_in_log(logging.getLogger("run"), 0):
        emit(RankOutput(0, tuple(f"line {i}" for i in range(1500))))
    first = len(sent(caplog))

    assert first <= 1000 + 200 * (time.monotonic() - begun)
    assert sent(caplog)[-1] == "[rank 0] line 1499"
    assert f"{1500 - first} lines are left out here; rank-N.log has them" in caplog.text
