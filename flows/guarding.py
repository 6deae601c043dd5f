"""The flow's side of what finishes a run in its place: what that has to know, and when it begins.

The process beside the flow is `flows.guard`; it becomes `flows.finisher`. Only the flows of a
worker have one: nobody else kills a flow that takes long to end, and who runs one by
``python -m flows run`` sees that it is gone.
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from pydantic import BaseModel, ConfigDict

from trainjob.errors import TrainjobError
from trainjob.job import TrainingJob
from trainjob.report import RunReport
from trainjob.run_record import RunRecord
from trainjob.storage.receipt import OutputState

_logger = logging.getLogger(__name__)
_HOME = Path(__file__).resolve().parents[1]
_PACKAGES = ("blocks", "flows", "tasks", "trainjob")
_POLL_S = 0.2
_END_TIMEOUT_S = 5.0
STOPPED_BY_SIGTERM = "stopped by SIGTERM: the run was cancelled, or its worker ended"


class Order(BaseModel):
    """What a finisher has to know."""

    # Every run imports this, few are stopped. A metric may be nan, which JSON calls null otherwise.
    model_config = ConfigDict(defer_build=True, ser_json_inf_nan="constants")

    run_id: str
    job: TrainingJob
    state: OutputState
    report: RunReport
    facts: dict[str, object]
    has_trained: bool
    flow_pid: int
    num_starts: int
    """How many processes the run had, that of the flow included."""
    is_restartable: bool
    """Whether another process of the run goes on if this one is killed; not if it had failed."""
    secrets: list[str]
    """What the ranks were given and nobody may find in the logs."""


class Finisher:
    """The process that finishes a run, from the flow's side.

    Args:
        record: What is known of the run; read whenever the process is told of it.
        secrets: What the ranks were given and nobody may find in the logs.

    Attributes:
        lock: The descriptor by which the flow holds the workspace; None while it does not.
        failure: Why the run failed, if it had when it was stopped.
        process: The process; None until it is started.
        num_starts: How many processes the run had, this one included.
        is_restartable: Whether another process of the run goes on if this one is killed before the
            run has failed.
    """

    def __init__(self, record: RunRecord, secrets: Collection[str] = ()) -> None:
        self.lock: int | None = None
        self.failure: TrainjobError | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.num_starts = 1
        self.is_restartable = False
        self._record = record
        self._secrets = secrets
        self._is_asked = False

    def keep(self) -> None:
        """Have the run finished, as it is known now, if this process is killed before `dismiss`."""
        try:
            if not self._is_asked:
                self._tell_order()
        except (OSError, ValueError):  # no disk, no process, no text: the run goes on without
            _logger.warning("nothing guards this run if it is killed", exc_info=True)

    def start(self) -> bool:
        """Have the run finished, once; return False if there is no need or nothing to finish."""
        if self._is_asked:
            return True
        if self._record.is_behind:
            return False
        try:
            if not self._tell_order():
                return False
            order_file_of(self._record.workspace.root).touch()
            self._say(b"f")
        except (OSError, ValueError):  # the flow does what it can itself
            _logger.exception("the finisher could not be started")
            return False
        self._is_asked = True
        self._hang_up()
        return True

    def wait(self) -> bool:
        """Wait until everything is saved and reported; return whether it is."""
        order_file = order_file_of(self._record.workspace.root)
        while self.process is not None and self.process.poll() is None and order_file.exists():
            time.sleep(_POLL_S)
        return not order_file.exists()

    def _tell_order(self) -> bool:
        """Tell the process what to do if it has to; return False if this run needs none."""
        # Only a worker kills a flow that takes long to end.
        is_under_worker = "PREFECT__FLOW_RUN_ID" in os.environ
        if not is_under_worker or self._record.job is None or self.lock is None:
            return False
        if self.process is not None and self.process.poll() is not None:  # somebody has killed it
            self._hang_up()
            self.process = None
        if self.process is None:
            self.process = _start(self._record, self.lock)
        order = self._order().model_dump_json().encode()
        # By its length, what a signal has cut off is told from the whole.
        self._say(b"k%d %s" % (len(order), order))
        return True

    def _order(self) -> Order:
        state: OutputState = "Failed" if self.failure else "Cancelled"
        return Order(
            run_id=self._record.run_id,
            job=self._record.job,
            state=state,
            report=self._record.report(state, self.failure or STOPPED_BY_SIGTERM),
            facts=self._record.receipt_facts(state),
            has_trained=self._record.has_trained,
            flow_pid=os.getpid(),
            num_starts=self.num_starts,
            is_restartable=self.is_restartable and self.failure is None,
            secrets=sorted(self._secrets),
        )

    def _say(self, line: bytes) -> None:
        """Write a line; who finishes already, or has ended, hears none."""
        told = cast(IO[bytes], cast("subprocess.Popen[bytes]", self.process).stdin)
        rest = memoryview(b"\n%s\n" % line)  # also after one that a signal has cut off
        with suppress(BrokenPipeError):
            while rest:
                rest = rest[told.write(rest) :]

    def dismiss(self) -> None:
        """Have nothing finished any more when this process ends, unless it was asked for."""
        if self.process is None or self._is_asked:
            return
        self._say(b"e")
        self._hang_up()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_TIMEOUT_S)
        self.process = None

    def _hang_up(self) -> None:
        cast(IO[bytes], cast("subprocess.Popen[bytes]", self.process).stdin).close()


def order_file_of(root: Path) -> Path:
    """Return the file that is in a workspace while it is being finished."""
    return root / "finish.json"


def home_that_stays(root: Path) -> Path:
    """Return where the code of a finisher is, also when its flow has ended.

    A worker that fetches the code from git for each flow keeps it in a temporary folder, and
    removes that with the flow: then it is copied into the workspace `root`.
    """
    if not _HOME.is_relative_to(Path(tempfile.gettempdir()).resolve()):
        return _HOME
    kept = root / "finisher"
    for package in _PACKAGES:
        without = shutil.ignore_patterns("__pycache__")
        shutil.copytree(_HOME / package, kept / package, ignore=without, dirs_exist_ok=True)
    return kept


def _start(record: RunRecord, lock: int) -> "subprocess.Popen[bytes]":
    root = record.workspace.root
    home = home_that_stays(root)
    guard = home / "flows" / "guard.py"
    return subprocess.Popen(
        # -I and -S: nothing of the user's or the site's Python runs in what must not fail.
        [sys.executable, "-I", "-S", str(guard), str(root), str(lock), str(os.getpid())],
        cwd=home,
        # The ranks are ended by the mark, and what saves their work is not one of them.
        env=os.environ | {"TRAINJOB_RUN_ID": record.run_id, "TRAINJOB_GUARD": "1"},
        bufsize=0,
        stdin=subprocess.PIPE,
        # Pipes of its own: holding ours, it would keep a worker waiting for a dead flow.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=[lock],  # so that no new process of the run begins before this one ends
    )
