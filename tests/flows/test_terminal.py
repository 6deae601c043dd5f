"""The story of a run in a terminal, by the lines that a person sees."""

import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from flows import terminal as terminal_module
from flows.terminal import Terminal, WarningLines
from tests.interruptions import stopped_everywhere
from tests.jobs import make_job
from trainjob.errors import StoreUnavailable, TrainingFailed
from trainjob.events import (
    AttemptEnded,
    AttemptStarted,
    Event,
    MetricReported,
    RankOutput,
    RunEnded,
    StageFailed,
    StageFinished,
    StageStarted,
    StepReported,
    Transferred,
)
from trainjob.failure import Failure
from trainjob.failure_card import card_text
from trainjob.job import TrainingJob
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
    assert told(RankOutput(0, (line,))) == f"      rank 0 | {shown.expandtabs()}\n"


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


@pytest.mark.parametrize(
    ("state", "color"),
    [
        ("Completed", "32"),
        ("AutoStopped", "32"),
        ("TargetReached", "32"),
        ("Cancelled", "33"),
        ("Failed", "31"),
    ],
)
def test_the_color_of_the_end_says_whether_it_is_a_good_one(state: str, color: str) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")

    Terminal(console).conclude(RunReport("x", "", state=state), 1.0)

    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == f"\x1b[1;{color}m{state} after 1.0 s\x1b[0m\n"


def test_the_end_says_what_was_saved_and_what_to_know() -> None:
    console = Console(file=io.StringIO(), width=40)
    saved = ("checkpoints  s3://b/ckpt/  3 files, 1.2 MiB", "logs  missing: rank-1.log (denied)")

    report = RunReport("x", "", state="Cancelled", error="stopped", saved=saved, notes=("a note",))
    Terminal(console).conclude(report, 1.0)

    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "Cancelled after 1.0 s",
        "stopped",
        "  checkpoints  s3://b/ckpt/  3 files, 1.2 MiB",
        "  logs  missing: rank-1.log (denied)",
        "  note  a note",
    ]


def test_a_failure_is_one_screen_instead_of_its_message() -> None:
    console = Console(file=io.StringIO(), width=100)
    failure = Failure(
        headline="rank 1 of 2 was killed first by SIGKILL (often out of memory)",
        ended="signal",
        rank=1,
        world_size=2,
        attempt=2,
        node="gpu-7",
        time="2026-05-04T12:00:00Z",
        exit_code=None,
        signal="SIGKILL",
        traceback="",
        last_lines=("loss [0.5]",),
        log_file=Path("/w/logs/rank-1.log"),
        log_files=(Path("/w/logs/rank-0.log"), Path("/w/logs/rank-1.log")),
        rule=None,
        restart=True,
    )

    report = RunReport("x", "", state="Failed", error="the whole message", failure=failure)
    Terminal(console).conclude(report, 1.0)

    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == f"Failed after 1.0 s\n{card_text(failure, 100)}\n"
    assert "loss [0.5]" in console.file.getvalue()


def test_what_a_rank_wrote_does_not_control_the_terminal_from_an_error() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None)

    Terminal(console).conclude(RunReport("x", "", state="Failed", error="said \x1b[2J[red]\x07"), 1)

    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "Failed after 1.0 s\nsaid [red]\n"


def restarted(resumed_from: int | None, *, has_files: bool) -> tuple[Event, Event]:
    error = TrainingFailed("rank 1 was killed by SIGKILL\nlast 20 lines of [rank 1]")
    ended = AttemptEnded(0, 5.0, None, error, will_restart=True, log_dir="/logs")
    return ended, AttemptStarted(1, resumed_from, has_files)


@pytest.mark.parametrize(
    ("resumed_from", "has_files", "where"),
    [
        (120, True, "from step 120"),
        (None, True, "with what the script has saved"),
        (None, False, "from the beginning"),
    ],
)
@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_restart_is_one_line_with_its_cause_and_where_it_goes_on(
    tmp_path: Path, resumed_from: int | None, has_files: bool, where: str, is_terminal: bool
) -> None:
    job = TrainingJob.parse(make_job(tmp_path, "", limits={"auto_restart": 2}))
    restart = restarted(resumed_from, has_files=has_files)
    console = Console(file=io.StringIO(), width=200, force_terminal=is_terminal, color_system=None)
    terminal = Terminal(console)
    terminal.introduce(job)

    with terminal.live():
        for event in (StageStarted("train"), AttemptStarted(0, None), *restart):
            terminal(event)

    assert isinstance(console.file, io.StringIO)
    assert (
        f"[4/5] train  attempt 2 of 3: rank 1 was killed by SIGKILL; restarting {where}\n"
        in console.file.getvalue()
    )


def test_a_failure_that_ends_the_run_is_left_to_the_end() -> None:
    error = TrainingFailed("rank 1 raised")

    assert told(AttemptEnded(0, 5.0, None, error, will_restart=False, log_dir="/logs")) == ""


def test_a_first_attempt_that_goes_on_from_a_checkpoint_says_so() -> None:
    assert told(AttemptStarted(0, None)) == ""
    assert told(AttemptStarted(0, 120)) == "[4/5] train  going on from step 120\n"


def test_the_bar_starts_anew_after_a_restart() -> None:
    text = told(
        StepReported(0, step=125, total=200, epoch=None, metrics={}),
        *restarted(120, has_files=True),
        StepReported(0, step=121, total=200, epoch=None, metrics={}),
        is_terminal=True,
    )

    assert "step 125/200" in text
    assert "step 121/200" in text.partition("restarting from step 120")[2]


def test_metrics_of_all_sources_stand_beside_the_step() -> None:
    text = told(
        StepReported(0, step=5, total=10, epoch=None, metrics={"loss": 0.25}),
        MetricReported({"accuracy[top-1]": 0.97123}, None, "regex"),
        MetricReported({"loss": 0.125}, 6, "tensorboard"),
        is_terminal=True,
    )

    assert "step 5/10  loss 0.125  accuracy[top-1] 0.9712" in text


def test_a_script_that_only_prints_its_loss_shows_it() -> None:
    assert "loss 0.3" in told(MetricReported({"loss": 0.3}, None, "regex"), is_terminal=True)


def test_without_a_terminal_progress_is_a_line_in_5_seconds_with_the_time_left() -> None:
    now = 0.0
    console = Console(file=io.StringIO(), width=200)
    terminal = Terminal(console, clock=lambda: now)

    for second in range(1, 13):
        now = float(second)
        terminal(StepReported(0, 10 * second, total=1000, epoch=2, metrics={"loss": 0.5}))

    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "      train  step 50/1000  epoch 2  loss 0.5  ETA 1m35s",
        "      train  step 100/1000  epoch 2  loss 0.5  ETA 1m30s",
    ]


def test_a_terminal_that_is_gone_does_not_end_the_run() -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError("Input/output error")

    Terminal(Console(file=Gone()))(RankOutput(0, ("line",)))


def test_warnings_of_the_core_are_lines_of_the_story() -> None:
    console = Console(record=True, width=80, file=io.StringIO())
    logger = logging.getLogger("test-of-warnings")
    handler = WarningLines(Terminal(console))
    logger.addHandler(handler)

    logger.warning("%s: away\x07", "s3://b")
    logger.info("no matter")

    logger.removeHandler(handler)
    assert console.export_text() == "      warning: s3://b: away\n"


def with_bars() -> Terminal:
    terminal = Terminal(Console(file=io.StringIO(), force_terminal=True))
    terminal(StageStarted("train", 1))
    terminal(Transferred("logs", 1, 1, 2, 2))
    return terminal


def test_the_story_goes_on_wherever_the_end_of_its_bars_was_interrupted() -> None:
    report = RunReport("digits", "run-1", state="Cancelled")

    for terminal in stopped_everywhere(
        with_bars, lambda terminal: terminal(RunEnded(report)), terminal_module, "_end_bars"
    ):
        assert terminal.report is report
        terminal(StepReported(0, 1, 10, None, {}))
        terminal(StageFinished("train", 1.0, "stopped"))
