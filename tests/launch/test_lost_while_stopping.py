"""Ranks that die while they save what they were asked to: nothing of that goes without a word."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.launch.conftest import read_record
from tests.launch.test_stop_requests import DEAF, LISTENING, run_until_all_are_ready
from tests.waiting import wait_until
from trainjob.events import Event, Noted, listening
from trainjob.launch.failure import RankFailed
from trainjob.launch.training import Control

SAVES_AT_SIGTERM = """
    import os, signal, sys, time
    def save(*_):
        {saving}
    signal.signal(signal.SIGTERM, save)
    print("ready", flush=True)
    time.sleep(60)
"""


def notes_of(run: Callable[[], Any]) -> list[str]:
    """Return what was noted while something ran."""
    events: list[Event] = []
    with listening(events.append):
        run()
    return [event.text for event in events if isinstance(event, Noted)]


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS])
def test_a_rank_that_is_killed_while_it_saves_is_a_failure(make_launch, signum: signal.Signals):
    """As by the kernel where memory runs out."""
    killed = f"    import os, signal\n    os.kill(os.getpid(), signal.{signum.name})\n"
    launch = make_launch(LISTENING.format(saving_s=0) + killed)

    with pytest.raises(RankFailed, match=f"rank 0 of 1 was killed by {signum.name}"):
        run_until_all_are_ready(launch)

    assert read_record(launch, "exit-0")["terminated_ns"] is None


@pytest.mark.parametrize(
    ("saving", "said"),
    [
        ("raise OSError('no space left')", "rank 0 of 1 failed: OSError: no space left"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "rank 0 of 1 was killed by SIGSEGV"),
    ],
)
def test_a_rank_that_fails_at_sigterm_is_told_of(make_launch, saving: str, said: str):
    launch = make_launch(SAVES_AT_SIGTERM.format(saving=saving))

    [note] = notes_of(lambda: run_until_all_are_ready(launch))

    assert note.startswith(f"while the training was stopped, {said}")


def test_a_rank_that_leaves_with_a_code_when_it_was_asked_to_is_told_of(make_launch):
    launch = make_launch(LISTENING.format(saving_s=0) + "    import os\n    os._exit(3)\n")

    [note] = notes_of(lambda: run_until_all_are_ready(launch))

    assert note == "while the training was stopped, rank 0 of 1 failed with exit code 3"


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(LISTENING.format(saving_s=0), id="listening"),
        pytest.param(DEAF, id="deaf"),
        pytest.param(SAVES_AT_SIGTERM.format(saving="sys.exit(143)"), id="handling"),
        pytest.param(SAVES_AT_SIGTERM.format(saving="pass"), id="stubborn"),
    ],
)
def test_ranks_that_end_as_they_are_asked_to_need_no_word(make_launch, script: str):
    launch = make_launch(script, grace_s=1.0)

    assert notes_of(lambda: run_until_all_are_ready(launch)) == []


def test_a_target_that_is_reached_after_a_rank_was_killed_hides_no_failure(make_launch, run_until):
    script = """
        import os, pathlib, signal, time
        signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
        print("ready", flush=True)
        if os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    """
    launch = make_launch(script, launcher="torchrun", world_size=2, grace_s=5.0)
    control = Control()

    def reach_target() -> None:
        wait_until((launch.records_dir / "told-to-leave-1.json").exists)
        control.stop_at_target()

    with pytest.raises(RankFailed, match="rank 0 of 2 was killed first by SIGKILL") as caught:
        run_until(launch, "told", reach_target, control)

    assert caught.value.restart
    assert read_record(launch, "outcome")["reason"] == "finished"
