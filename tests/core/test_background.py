"""Threads that watch a training from the process of its flow."""

import os
from contextvars import ContextVar

import pytest

from trainjob.background import background_thread, growing_pause_s

_said: ContextVar[str] = ContextVar("said")


def test_it_sees_the_context_of_the_caller() -> None:
    seen: list[str] = []
    _said.set("by the caller")
    thread = background_thread(lambda: seen.append(_said.get()), "reader")
    _said.set("later")
    thread.start()
    thread.join()
    assert seen == ["by the caller"]
    assert (thread.name, thread.daemon) == ("reader", True)


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux alone has this policy")
def test_it_interrupts_no_rank_and_what_the_caller_starts_stays_as_it_is() -> None:
    seen: list[int] = []
    thread = background_thread(lambda: seen.append(os.sched_getscheduler(0)), "patient")
    before = os.sched_getscheduler(0)
    thread.start()
    thread.join()
    assert seen == [os.SCHED_BATCH]
    assert os.sched_getscheduler(0) == before


def test_it_works_where_the_policy_cannot_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setscheduler")
    seen: list[str] = []
    thread = background_thread(lambda: seen.append("done"), "elsewhere")
    thread.start()
    thread.join()
    assert seen == ["done"]


def test_pauses_grow_with_the_age_of_what_is_shown_up_to_a_longest_one() -> None:
    pauses = [growing_pause_s(age_s, 5.0, 60.0) for age_s in (0, 40, 300, 601, 1e6)]

    assert pauses == [5, 5, 30, 60, 60]
