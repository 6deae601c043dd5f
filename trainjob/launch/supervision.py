"""The flow process's side of the supervisor: start it, wait for its word, stop it, clean up.

Whatever happens to the thread that waits, no process of the run outlives the call.
"""

import json
import logging
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

from trainjob.launch.launch import Launch
from trainjob.launch.processes import descendants, signal_all

_logger = logging.getLogger(__name__)

Reason = Literal["finished", "auto_stop", "target", "stalled", "memory", "stopped", "orphaned"]

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_STOP, _TARGET, _KILL = b"s", b"t", b"k"
# Blocking longer would keep a signal or an exception for this thread waiting.
_POLL_S = 0.2
_KILL_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Finished:
    """What the supervisor says at the end: why, and the exit code of the launcher.

    A negative code is the signal that ended the launcher.
    """

    reason: Reason
    code: int


class Control:
    """Stops a training from elsewhere, and tells of an interruption; safe in any thread.

    Args:
        on_interrupt: Called once, in the thread that waits for the ranks, when an exception such as
            KeyboardInterrupt interrupts it: they have been asked to leave and may take the whole
            grace. What it raises is logged and changes nothing.
    """

    def __init__(self, on_interrupt: Callable[[], object] | None = None) -> None:
        self._on_interrupt = on_interrupt
        self._lock = threading.Lock()
        self._send: Callable[[bytes], None] | None = None
        self._is_target_reached = False

    def stop_at_target(self) -> None:
        """Have the training stopped, for its target is reached; before its start, too."""
        with self._lock:
            self._is_target_reached = True
            if self._send is not None:
                self._send(_TARGET)

    def forget_target(self) -> None:
        """Let other ranks train after those that had reached the target and failed.

        It is theirs alone: what was good enough may be lost with them. The time limit and a person
        stop a training by other ways, which stay in force.
        """
        with self._lock:
            self._is_target_reached = False

    @contextmanager
    def connected(self, send: Callable[[bytes], None]) -> Iterator[None]:
        """Pass stops on by `send` until the block ends."""
        with self._lock:
            self._send = send
            if self._is_target_reached:
                send(_TARGET)
        try:
            yield
        finally:
            with self._lock:
                self._send = None

    def note_interrupt(self) -> None:
        """Tell who wants to know that the wait for the ranks was interrupted."""
        if self._on_interrupt is None:
            return
        try:
            self._on_interrupt()
        except Exception:
            _logger.exception("what was to be done at an interruption failed")


def supervise(launch: Launch, environment: dict[str, str], control: Control) -> Finished | None:
    """Run the launch under a supervisor to its end; may be called from any thread.

    Any exception in this thread, such as KeyboardInterrupt or the termination signal of Prefect,
    stops the ranks within the grace of the launch; a second one kills them.

    Args:
        launch: What to start; its order file is written.
        environment: The environment of everything that is started.
        control: Stops the run from elsewhere, and hears of an interruption.

    Returns:
        The word of the supervisor, or None if it died without one.
    """
    try:
        return _supervised(_Supervisor(launch, environment), launch.grace_s, control)
    finally:  # also of a supervisor that was started and is not known: a signal came meanwhile
        _kill_marked(launch.run_id)


def _supervised(supervisor: "_Supervisor", grace_s: float, control: Control) -> Finished | None:
    try:
        with control.connected(supervisor.send):
            return supervisor.wait()
    except BaseException:
        supervisor.stop(grace_s, control.note_interrupt)
        raise
    finally:
        supervisor.close()


class _Supervisor:
    """A supervisor that was started, and the pipes to and from it."""

    def __init__(self, launch: Launch, environment: dict[str, str]) -> None:
        # -I and -S: nothing of the user's or the site's Python runs in what must not fail.
        argv = [sys.executable, "-I", "-S", str(_SUPERVISOR), str(launch.order_file)]
        with launch.launcher_log.open("ab") as log:
            self._process = subprocess.Popen(
                argv,
                cwd=launch.code_dir,
                env=environment,
                stdin=subprocess.PIPE,
                # A pipe of its own: holding ours, it would keep a worker waiting for a dead flow.
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,
                # Cards and cores stay ours until the supervisor has ended, also after this process.
                pass_fds=launch.claims,
            )
        self._lifeline = cast("IO[bytes]", self._process.stdin)
        self._events = cast("IO[bytes]", self._process.stdout)

    def wait(self, timeout_s: float = math.inf) -> Finished | None:
        """Return what the supervisor says at the end; None if it died or the time is over."""
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._events, select.POLLIN)
        said = b""
        while time.monotonic() < deadline:
            if not poll.poll(_POLL_S * 1000):
                continue
            chunk = self._events.read(65536)
            if not chunk:
                return None
            *lines, said = (said + chunk).split(b"\n")
            for event in map(json.loads, lines):
                if event["event"] == "finished":
                    return Finished(event["reason"], event["code"])
        return None

    def stop(self, grace_s: float, meanwhile: Callable[[], None]) -> None:
        """Have the ranks stopped; a second interruption has them killed."""
        try:
            self.send(_STOP)
            meanwhile()
            self.wait(grace_s + _KILL_TIMEOUT_S)
        except BaseException:  # noqa: BLE001 - the first one is raised again by the caller
            self.send(_KILL)
            self.wait(_KILL_TIMEOUT_S)

    def close(self) -> None:
        """Let go of the lifeline, and of the supervisor if it does not end by that."""
        self._lifeline.close()
        try:
            self._process.wait(_KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._events.close()

    def send(self, command: bytes) -> None:
        """Write a command to the lifeline, if there is still someone to read it."""
        with suppress(BrokenPipeError):
            self._lifeline.write(command)


def _kill_marked(run_id: str) -> None:
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while (left := _marked(run_id)) and time.monotonic() < deadline:
        # What has lost its mark is below a stub that has it.
        signal_all({*left, *descendants(*left)}, signal.SIGKILL)
        time.sleep(0.01)


def _marked(run_id: str) -> list[int]:
    """Return what has the mark of the run, but for the guard of its flow (`flows.guard`)."""
    mark = b"TRAINJOB_RUN_ID=" + os.fsencode(run_id)
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "environ").read_bytes().split(b"\0")
            if mark in words and b"TRAINJOB_GUARD=1" not in words:
                found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]
