"""How a copy is told: how far it is, how fast, and how long it still takes."""

import io

from rich.console import Console

from flows.terminal import Terminal
from trainjob.events import StageStarted, Transferred


def test_a_copy_tells_its_speed_and_the_time_that_is_left() -> None:
    seconds = [0.0]
    console = Console(file=io.StringIO(), width=200, color_system=None)
    terminal = Terminal(console, clock=lambda: seconds[0])

    terminal(StageStarted("stage_inputs"))
    for megabytes in (0, 10, 20):
        terminal(Transferred("data_url", megabytes, 100, megabytes << 20, 100 << 20))
        seconds[0] += 5

    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "      data_url  10/100 files, 10 MiB of 100 MiB, 2 MiB/s, ETA 45s",
        "      data_url  20/100 files, 20 MiB of 100 MiB, 2 MiB/s, ETA 40s",
    ]


def test_a_copy_whose_size_is_not_known_tells_what_is_done() -> None:
    seconds = [0.0]
    console = Console(file=io.StringIO(), width=200, color_system=None)
    terminal = Terminal(console, clock=lambda: seconds[0])

    terminal(StageStarted("stage_inputs"))
    for megabytes in (0, 10):
        terminal(Transferred("unpack data_url", megabytes, None, megabytes << 20, None))
        seconds[0] += 5

    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "      unpack data_url  10 files, 10 MiB, 2 MiB/s"
    ]
