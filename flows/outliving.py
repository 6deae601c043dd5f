"""Lets a flow outlive the worker that started it.

A worker reads what its flows print from a pipe. When it is killed, Prefect's log handler finds the
pipe broken at the next line, and rich ends the process then (`Console.on_broken_pipe`, rich 15):
a training that nothing ails would be Crashed.
"""

import logging
import os
import sys

from prefect.logging.handlers import PrefectConsoleHandler


def outlive_worker() -> None:
    """Have log lines go nowhere, instead of ending the process, once nobody reads them."""
    loggers = [logging.root, *map(logging.getLogger, logging.root.manager.loggerDict)]
    for logger in loggers:
        for handler in logger.handlers:
            if isinstance(handler, PrefectConsoleHandler):
                handler.console.on_broken_pipe = _drop_output  # type: ignore[method-assign]


def _drop_output() -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nothing, stream.fileno())
    os.close(nothing)
