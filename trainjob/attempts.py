"""Trains in attempts: ranks that the machine failed are started again from their last checkpoint.

One attempt is one launch with a supervisor, a rendezvous and logs of its own. What is kept around
all attempts of a run, such as the copies in the stores, is the business of `trainjob.training`.
"""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from trainjob.checkpoint_folder import complete_checkpoints
from trainjob.errors import LaunchError, RunLost, TrainingFailed, TrainjobError
from trainjob.events import AttemptEnded, AttemptStarted, emit
from trainjob.job import TrainingJob
from trainjob.launch.failure import Explained
from trainjob.launch.launch import CoreLease, Lease
from trainjob.launch.training import Control, TrainingResult, run_training
from trainjob.limits import Limits
from trainjob.metrics.recorder import MetricsRecorder
from trainjob.plan import Program, launch_of
from trainjob.values import format_duration
from trainjob.workspace import Workspace

OUTCOMES = {
    "finished": "every rank finished",
    "auto_stop": "stopped by limits.auto_stop",
    "target": "stopped by limits.target",
}
"""How an attempt ended that did not fail, by the reason that its supervisor gave."""


@dataclass(frozen=True, slots=True)
class Trained:
    """How the training ended well; `attempt` counts from 0, `log_dir` has a file a rank."""

    result: TrainingResult
    attempt: int
    log_dir: str


@dataclass(frozen=True, slots=True)
class Earlier:
    """What the processes of a run before this one did, on whatever machine.

    Attributes:
        num_processes: How many there were.
        num_attempts: How many attempts they began, as far as is known.
        num_restarts: How often the training was started again since a person had it started, also
            by this process if it follows one that was killed.
        trained_s: For how many seconds it trained since then, as far as is known elsewhere.
        since_attempt: The first attempt since then. Not every process that is killed began one.
    """

    num_processes: int = 0
    num_attempts: int = 0
    num_restarts: int = 0
    trained_s: float = 0.0
    since_attempt: int = 0


def refuse_without_time(job: TrainingJob, workspace: Workspace, earlier: Earlier) -> None:
    """Begin no attempt if earlier processes of the run have used up its time.

    It would be stopped at once, and have the outputs set aside for nothing. Nor is it a good end:
    the last attempt was killed with its process, maybe while it saved.

    Raises:
        RunLost: If there is no time left.
    """
    limit, trained_s = job.limits.auto_stop, _trained_before_s(workspace, earlier)
    if limit is None or _has_time(job.limits, trained_s):
        return
    raise RunLost(
        f"the process of the run was killed, and the {format_duration(limit)} of limits.auto_stop "
        "are used up, so there is no time for another attempt; what the last one saved is kept; "
        "retry the run to go on from its last checkpoint, with all of the time"
    )


class Attempts:
    """The attempts of one training.

    Args:
        job: What to train.
        workspace: Its folders; code, inputs and parameters are there.
        program: What every rank executes.
        run_id: The run mark.
        earlier: What earlier processes of the run did.
        control: To stop the training from elsewhere.
        recorder: Records the metrics.
        credentials: What only the environment of the ranks may hold.
        lease: The cards of the ranks.
        core_lease: The cores of the ranks.
    """

    def __init__(
        self,
        job: TrainingJob,
        workspace: Workspace,
        program: Program,
        *,
        run_id: str,
        earlier: Earlier,
        control: Control,
        recorder: MetricsRecorder,
        credentials: Mapping[str, str] | None = None,
        lease: Lease | None = None,
        core_lease: CoreLease | None = None,
    ) -> None:
        self._job = job
        self._workspace = workspace
        self._program = program
        self._run_id = run_id
        self._control = control
        self._recorder = recorder
        self._credentials = credentials
        self._lease = lease
        self._core_lease = core_lease
        self._num_restarts = earlier.num_restarts
        self._first_attempt = earlier.num_attempts
        self._trained_s = _trained_before_s(workspace, earlier)

    def run(self) -> Trained:
        """Train until an attempt ends well, or fails in a way that another one cannot help.

        Raises:
            TrainingFailed: The last attempt failed.
            LaunchError: The ranks could not be started.
        """
        while True:
            trained = self._attempt()
            if trained is not None:
                return trained
            self._num_restarts += 1
            self._control.forget_target()

    def _attempt(self) -> Trained | None:
        """Make one attempt; return None if it failed and another one can help."""
        resumed_from = _latest_step(self._workspace.checkpoints)
        has_files = self._workspace.has_checkpoints()
        attempt = self._workspace.start_attempt(
            tuple(channel.name for channel in self._job.outputs),
            keeps_outputs=has_files,
            at_least=self._first_attempt,
        )
        log_dir = str(self._workspace.attempt_logs(attempt))
        launch = launch_of(
            self._job,
            self._workspace,
            self._program,
            run_id=self._run_id,
            attempt=attempt,
            trained_s=self._trained_s,
            lease=self._lease,
            core_lease=self._core_lease,
        )
        emit(AttemptStarted(attempt, resumed_from, has_files))
        begun = time.monotonic()
        result, failure, will_restart = None, None, False
        try:
            with self._recording(attempt, resumed_from):
                result = run_training(launch, self._control, self._credentials)
        except (TrainingFailed, LaunchError) as error:
            failure, will_restart = error, self._will_restart(error, time.monotonic() - begun)
            if not will_restart:
                raise
        finally:
            seconds = time.monotonic() - begun
            self._trained_s += seconds
            reason = result.reason if result else None
            emit(AttemptEnded(attempt, seconds, reason, failure, will_restart, log_dir))
        if result is None:
            return None
        return Trained(TrainingResult(result.reason, self._trained_s), attempt, log_dir)

    def _recording(self, attempt: int, resumed_from: int | None) -> AbstractContextManager[None]:
        """Record the metrics of an attempt, after those of the attempt before."""
        workspace = self._workspace
        return self._recorder.recording(
            attempt,
            resumed_from,
            [workspace.output_dir(channel.name) for channel in self._job.outputs],
            workspace.metrics_dir(attempt),
            workspace.metrics_dir(attempt - 1) if attempt else None,
        )

    def _will_restart(self, error: TrainjobError, seconds: float) -> bool:
        limits = self._job.limits
        has_time = _has_time(limits, self._trained_s + seconds)
        return self._num_restarts < limits.auto_restart and has_time and _can_help(error, limits)


def _trained_before_s(workspace: Workspace, earlier: Earlier) -> float:
    """Return for how many seconds earlier processes trained, which count for ``auto_stop``."""
    if not earlier.num_restarts:  # a person has started it anew, with all of the time
        return 0.0
    return max(workspace.trained_s(earlier.since_attempt), earlier.trained_s)


def _has_time(limits: Limits, trained_s: float) -> bool:
    """Tell whether there is time for an attempt."""
    return limits.auto_stop is None or trained_s < limits.auto_stop.total_seconds()


def _latest_step(folder: Path) -> int | None:
    """Return the step that the ranks find to go on from, if they save by `trainjob.checkpoint`."""
    complete, _ = complete_checkpoints(folder)
    return complete[-1].marker.step if complete else None


def _can_help(error: TrainjobError, limits: Limits) -> bool:
    """Tell whether another attempt can end better than one that ended in `error`."""
    return limits.restart_on == "any" or (isinstance(error, Explained) and error.restart)
