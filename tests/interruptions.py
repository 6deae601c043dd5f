"""Interruptions at places that a test chooses, as by a signal handler that raises there."""

import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from types import FrameType, ModuleType
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


class Stop(BaseException):
    """As Prefect's TerminationSignal: raised by a signal handler between any two lines."""


def stopped_everywhere(
    begin: Callable[[], T],
    act: Callable[[T], object],
    module: ModuleType | None = None,
    *names: str,
) -> Iterator[T]:
    """Yield what `begin` returns after `act` on it was stopped: at its first line, its second, ...

    Args:
        begin: Makes what is acted on, anew for every stop.
        act: Is stopped, until it ends before the next stop is due.
        module: Stop at lines of this module alone; None: at every line, of whatever is called.
        names: Stop in the functions with these names alone.
    """
    for number in count():
        subject = begin()
        before = sys.gettrace()
        sys.settrace(_stopping_at(number, module, names))
        try:
            act(subject)
        except Stop:
            pass
        else:
            assert number, "no such line was passed"
            return
        finally:
            sys.settrace(before)
        yield subject


def _stopping_at(
    number: int, module: ModuleType | None, names: tuple[str, ...]
) -> Callable[..., Any]:
    """Return a tracer (sys.settrace) that raises at the line `number`, counted over all frames."""
    passed = count()

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if module is not None and frame.f_code.co_filename != module.__file__:
            return None
        if names and frame.f_code.co_name not in names:
            return None
        if event == "line" and next(passed) == number:
            raise Stop
        return trace

    return trace


def stop_start_of_thread(monkeypatch: pytest.MonkeyPatch, name: str, *, is_late: bool) -> None:
    """Stop who starts the thread `name`, before it runs or as soon as it does."""
    start = threading.Thread.start

    def stopped_start(thread: threading.Thread) -> None:
        if thread.name != name or is_late:
            start(thread)
        if thread.name == name:
            raise Stop

    monkeypatch.setattr(threading.Thread, "start", stopped_start)


def runs(name: str) -> bool:
    """Tell whether a thread of this name runs."""
    return any(thread.name == name for thread in threading.enumerate())
