"""The story of a run in a terminal, by the lines that a person sees."""

import io

import pytest
from rich.console import Console

from flows.terminal import Terminal
from trainjob.errors import StoreUnavailable
from trainjob.events import (
    Event,
    RankOutput,
    StageFailed,
    StageFinished,
    StageStarted,
    StepReported,
    Transferred,
)
from trainjob.report import OutputReport, RunReport


def told(*events: Event, only_rank: int | None = None, is_terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=200, force_terminal=is_terminal, color_system=None)
    terminal = Terminal(console, only_rank)
    with terminal.live():
        for event in events:
            terminal(event)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_stage_is_one_line_with_its_number() -> None:
    assert told(StageFinished("fetch_code", 0.04, "3 [files]")) == (
        "[2/5] fetch_code  3 [files] (0.0 s)\n"
    )


def test_a_stage_that_is_tried_again_says_why() -> None:
    error = StoreUnavailable("s3://b: no answer; try again\nmore")

    text = told(
        StageFailed("stage_inputs", 1.0, error, will_retry=True), StageStarted("stage_inputs", 2)
    )

    assert text == (
        "[1/5] stage_inputs  will be tried again: s3://b: no answer; try again\n"
        "[1/5] stage_inputs  attempt 2\n"
    )


def test_lines_of_ranks_are_prefixed_and_shown_as_they_are() -> None:
    text = told(RankOutput(0, ("[bold]loss[/] 1", "x" * 300)), RankOutput(1, ("other",)))

    assert (
        text
        == f"      rank 0 | [bold]loss[/] 1\n      rank 0 | {'x' * 300}\n      rank 1 | other\n"
    )


def test_one_rank_can_be_shown_alone() -> None:
    events = (RankOutput(0, ("a",)), RankOutput(1, ("b",)), RankOutput(None, ("c",)))

    assert told(*events, only_rank=0) == "      rank 0 | a\n      launcher | c\n"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("10%\r20%\r30%", "30%"),
        ("done\r", "done"),
        ("\x1b[2Jcleared\x07\x00", "cleared"),
        ("a\tb", "a\tb"),
        ("\x1b]0;title\x07x", "]0;titlex"),
    ],
)
def test_control_characters_of_a_rank_do_not_reach_the_terminal(line: str, shown: str) -> None:
    assert told(RankOutput(0, (line,))) == f"      rank 0 | {shown}\n".expandtabs(8)


def test_bars_are_live_in_a_terminal_and_rare_lines_elsewhere() -> None:
    events = (
        StageStarted("train"),
        StepReported(0, step=5, total=10, epoch=1, metrics={"loss": 0.25}),
        Transferred("data_url", 1, 2, 1024, 2048),
    )

    assert "step 5/10  epoch 1  loss 0.25" in told(*events, is_terminal=True)
    assert "1/2 files, 1 KiB of 2 KiB" in told(*events, is_terminal=True)
    assert told(*events) == "[4/5] train  starting\n"


def test_the_end_says_where_everything_is() -> None:
    console = Console(file=io.StringIO(), width=200)
    output = OutputReport("train_url", "s3://b/my out/", 2, 10)

    Terminal(console).conclude(
        RunReport("x", "run-1", outputs=(output,), logs="/w/logs", store="lab"), 12.34
    )

    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "Completed after 12.3 s",
        "  train_url  s3://b/my out/",
        "  prove it  python -m flows verify 's3://b/my out/' --store lab",
        "  logs  /w/logs",
        "  run   run-1",
    ]


def test_a_terminal_that_is_gone_does_not_end_the_run() -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError("Input/output error")

    Terminal(Console(file=Gone()))(RankOutput(0, ("line",)))
