"""The files of the metrics of one attempt, on disks that are full and when they are interrupted."""

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from tests.interruptions import stopped_everywhere
from trainjob.metrics import metric_files
from trainjob.metrics.metric_files import LINES, MetricFiles
from trainjob.metrics.reading import Reading

EARLIER_STEPS = [*range(1, 51)]


def reading(step: int, attempt: int) -> Reading:
    return Reading(1.7e9, attempt, step, {"loss": 0.5}, "report")


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The folder of an attempt that ended, with more than a full disk takes."""
    folder = tmp_path / "earlier"
    files = MetricFiles(folder, None, 0, None)
    files.add([reading(step, 0) for step in EARLIER_STEPS])
    files.close()
    return folder


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow beyond 1,000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / LINES).read_text().splitlines()]


def event_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("events.*")}


def test_the_metrics_before_are_brought_over_as_soon_as_the_disk_has_room(
    earlier, tmp_path, monkeypatch
):
    monkeypatch.setattr(metric_files, "_RETRY_S", 0.0)
    files = MetricFiles(tmp_path / "now", earlier, 1, None)

    with full_disk():
        files.add([reading(51, 1)])
    files.add([reading(52, 1)])
    files.close()

    assert steps(tmp_path / "now") == [*EARLIER_STEPS, 52]
    assert event_files(earlier).items() < event_files(tmp_path / "now").items()


def test_a_disk_that_stays_full_is_not_written_to_over_and_over(earlier, tmp_path, monkeypatch):
    copied: list[Path] = []
    growing_file = metric_files._GrowingFile

    def counted(path: Path, begin_with: Path | None = None) -> object:
        copied.append(path)
        return growing_file(path, begin_with)

    monkeypatch.setattr(metric_files, "_GrowingFile", counted)
    files = MetricFiles(tmp_path / "now", earlier, 1, None)

    with full_disk():
        for step in range(51, 71):
            files.add([reading(step, 1)])

    assert copied == [tmp_path / "now" / LINES]


def test_the_metrics_before_are_brought_over_at_the_end_if_there_was_no_room_before(
    earlier, tmp_path
):
    files = MetricFiles(tmp_path / "now", earlier, 1, None)

    with full_disk():
        files.add([reading(51, 1)])
    files.close()

    assert steps(tmp_path / "now") == EARLIER_STEPS
    assert event_files(tmp_path / "now") == event_files(earlier)


def test_event_files_that_had_no_room_are_brought_over_at_the_end(earlier, tmp_path):
    (earlier / LINES).write_bytes(reading(1, 0).to_line())
    files = MetricFiles(tmp_path / "now", earlier, 1, None)

    with full_disk():
        files.add([reading(51, 1)])
    files.add([reading(52, 1)])
    files.close()

    assert steps(tmp_path / "now")[-1] == 52
    assert event_files(earlier).items() <= event_files(tmp_path / "now").items()


def test_all_is_brought_over_wherever_that_was_interrupted(earlier, tmp_path):
    numbers = count()

    def begin() -> tuple[Path, MetricFiles]:
        folder = tmp_path / f"now-{next(numbers)}"
        return folder, MetricFiles(folder, earlier, 1, None)

    def close(begun: tuple[Path, MetricFiles]) -> None:
        begun[1].close()

    for folder, files in stopped_everywhere(begin, close, metric_files, "_begin"):
        files.close()
        assert steps(folder) == EARLIER_STEPS
        assert event_files(folder) == event_files(earlier)


def test_what_comes_after_the_end_is_left_out(tmp_path):
    files = MetricFiles(tmp_path, None, 0, None)
    files.add([reading(1, 0)])
    files.close()

    files.add([reading(2, 0)])

    assert steps(tmp_path) == [1]


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_what_a_script_puts_in_the_place_of_earlier_metrics_is_not_read(tmp_path, kind):
    (tmp_path / "earlier").mkdir()
    (tmp_path / "secret").write_text("secret\n")
    if kind == "pipe":
        os.mkfifo(tmp_path / "earlier" / LINES)
    else:
        (tmp_path / "earlier" / LINES).symlink_to(tmp_path / "secret")
    files = MetricFiles(tmp_path / "now", tmp_path / "earlier", 1, None)

    files.add([reading(1, 1)])
    files.close()

    assert steps(tmp_path / "now") == [1]
