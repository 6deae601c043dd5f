"""The card of a failure: the most important on top, one screen, nothing that a page would obey."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainjob.catalogue import Signs, find_rule
from trainjob.failure import Failure
from trainjob.failure_card import card_markdown, card_text
from trainjob.launch.stall import Stall, StalledRank

LOGS = Path("/runs/1/logs/attempt-1")
STACK = """\
Thread 0x00007f01 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait

Current thread 0x00007f02 (most recent call first):
  File "/venv/lib/python3.11/site-packages/torch/utils/data/dataloader.py", line 1 in __next__
  File "/code/loader.py", line 88 in next_batch
  File "/code/train.py", line 12 in <module>
"""


def failure(**changes: Any) -> Failure:
    traceback = 'Traceback (most recent call last):\n  File "train.py", line 3, in <module>\n'
    known = Failure(
        headline="rank 1 of 2 failed first: ValueError: no such class (exit code 1)",
        ended="exception",
        rank=1,
        world_size=2,
        attempt=1,
        node="node-7",
        time="2026-05-04T12:00:00Z",
        exit_code=1,
        signal=None,
        traceback=f"{traceback}ValueError: no such class\n",
        last_lines=("step 1", "step 2"),
        log_file=LOGS / "rank-1.log",
        log_files=(LOGS / "rank-0.log", LOGS / "rank-1.log", LOGS / "launcher.log"),
        rule=None,
        restart=False,
    )
    return replace(known, **changes)


def stalled() -> Failure:
    ranks = (
        StalledRank(0, 42, "all_reduce", "waits in a collective", 12.34, STACK),
        StalledRank(1, 41, None, "idle", 9.0, STACK),
    )
    stall = Stall(quiet_s=600.0, behind=1, ranks=ranks)
    return failure(
        headline=stall.headline,
        ended="stalled",
        exit_code=None,
        traceback="",
        rule=find_rule(Signs("stalled")),
        restart=True,
        stall=stall,
    )


def test_the_page_says_everything_that_is_known():
    rule = find_rule(Signs("exception", ("ModuleNotFoundError: No module named 'cv2'",)))
    known = failure(
        rule=rule, evidence=("out-of-memory killer: 1 process killed",), signal="SIGKILL"
    )

    page = card_markdown(known)

    for text in (
        "## What failed first",
        "**rank 1 of 2 failed first: ValueError: no such class (exit code 1)**",
        "**module not found:** The script imports cv2,",
        "**What to do:** Is it yours, put it beside the boot file.",
        "**Another try** cannot help, since this would come again; `limits.restart_on: any` makes",
        "| rank | 1 of 2 |",
        "| attempt | 2 |",
        "| node | node-7 |",
        "| time | 2026-05-04T12:00:00Z |",
        "| exit code | 1 |",
        "| signal | SIGKILL |",
        "```\nTraceback (most recent call last):\n",
        "The last 2 lines of rank 1:\n\n```\nstep 1\nstep 2\n```",
        "```\nout-of-memory killer: 1 process killed\n```",
        f"- `{LOGS / 'rank-0.log'}`\n- `{LOGS / 'rank-1.log'}`\n- `{LOGS / 'launcher.log'}`",
    ):
        assert text in page


def test_what_is_not_known_is_not_on_the_page():
    page = card_markdown(failure(traceback="", last_lines=(), exit_code=None, log_files=()))

    for text in ("raised", "The last", "exit code |", "kernel", "logs", "What to do", "```"):
        assert text not in page


def test_the_text_has_the_most_important_first():
    text = card_text(failure(), 100).split("\n")

    assert text == [
        "rank 1 of 2 failed first: ValueError: no such class (exit code 1)",
        "  another try cannot help, since this would come again; limits.restart_on: any makes it "
        "anyway.",
        "  rank 1 of 2, attempt 2, node node-7, time 2026-05-04T12:00:00Z, exit code 1",
        "",
        "Traceback (most recent call last):",
        '  File "train.py", line 3, in <module>',
        "ValueError: no such class",
        "",
        "last 2 lines of rank 1:",
        "  step 1",
        "  step 2",
        "",
        f"log: {LOGS / 'rank-1.log'}",
        "2 other logs beside it",
    ]


def test_the_text_is_one_screen_however_much_is_known():
    long = "\n".join(f"  line {i} {'x' * 300}" for i in range(500))
    rule = find_rule(Signs("signal", signal="SIGKILL"))
    known = failure(
        traceback=long,
        last_lines=tuple(f"step {i} {'y' * 300}" for i in range(20)),
        rule=rule,
        evidence=("out-of-memory killer: 1 process killed", "memory: limit 4 GiB, peak 4 GiB"),
    )

    lines = card_text(known, 80).split("\n")

    assert len(lines) <= 45
    assert max(map(len, lines)) <= 3 * 80
    assert any(line.startswith("  step 19 ") for line in lines)
    assert any(line.startswith("  line 499 ") for line in lines)


def test_a_narrow_terminal_cuts_no_path():
    assert f"log: {LOGS / 'rank-1.log'}" in card_text(failure(), 20).split("\n")


@pytest.mark.parametrize("card", [card_markdown, card_text])
def test_what_a_rank_wrote_cannot_steer_page_or_terminal(card):
    known = failure(
        headline="rank 0 failed: \x1b[31m*bold* <script> | cell\x07",
        last_lines=("\x1b]0;title\x07\x1b[2J```", "# not a heading"),
    )

    shown = card(known)

    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)


def test_markdown_of_a_rank_stays_text():
    known = failure(
        headline="rank 0 failed: *bold* <script> | cell", last_lines=("```", "# not a heading")
    )

    page = card_markdown(known)

    assert "**rank 0 failed: \\*bold\\* \\<script\\> \\| cell**" in page
    assert "````\n```\n# not a heading\n````" in page


def test_a_stall_shows_every_rank_and_its_stack():
    page = card_markdown(stalled())

    assert (
        "stalled: nothing was seen of the training for 10m; rank 1 is behind (step 41, the others "
        "42; it is in loader.py:88 next\\_batch while the others wait in all\\_reduce)"
    ) in page
    assert "| 0 | 42 | waits in all\\_reduce | 12.3 s | loader.py:88 next\\_batch |" in page
    assert "| 1 | 41 | idle | 9.0 s | loader.py:88 next\\_batch |" in page
    assert f"Stacks of rank 1, the latest call first:\n\n```\n{STACK.strip()}\n```" in page
    assert "**Another try** can help, since this may pass" in page


def test_a_stall_of_which_nobody_is_known_to_be_behind_is_laid_on_no_rank():
    stall = Stall(quiet_s=600.0, behind=None, ranks=())
    known = failure(ended="stalled", rank=None, stall=stall, last_lines=("waiting",))

    page = card_markdown(known)

    assert "| rank |" not in page
    assert "The last 1 line of rank 0:" in page


def test_a_stall_in_the_terminal_is_a_line_a_rank():
    text = card_text(stalled(), 100)

    assert "  rank 1: step 41, idle, 9.0 s of CPU time, at loader.py:88 next_batch\n" in text
    assert "most recent call first" not in text
    assert len(text.split("\n")) <= 45


def test_a_failure_of_no_rank_names_the_launcher():
    known = failure(rank=None, headline="the launcher (torchrun) failed", traceback="")

    assert "The last 2 lines of the launcher:" in card_markdown(known)
    assert "| rank |" not in card_markdown(known)
    assert "last 2 lines of the launcher:" in card_text(known)
