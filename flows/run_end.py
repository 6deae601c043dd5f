"""Ends a run, well or not: what it leaves is saved, and how it ended is told, whatever interrupts.

A run is interrupted by Ctrl-C, by SIGTERM, after which a worker waits 30 s before it kills, or by
SIGKILL; after the last two `flows.finisher` goes on. Why a run failed is told before anything of it
is saved, and the copies on this machine are removed when everything is told, so that an
interruption loses none of it.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from httpx import HTTPError
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Completed, Failed

from blocks.object_store import load_settings
from flows.guarding import STOPPED_BY_SIGTERM, Finisher
from tasks.report import report, write_report
from trainjob.errors import RunCancelled, StoreError, TrainjobError
from trainjob.events import Noted, RunEnded, emit, listening
from trainjob.job import url_of_run
from trainjob.mirrors import unsent_checkpoints
from trainjob.report import RunReport
from trainjob.run_record import RunRecord, stopped_text, with_saved
from trainjob.saving import PATIENCE_S, save_checkpoints_and_logs, save_outputs
from trainjob.storage.receipt import OutputState

GOOD_STATES: dict[str, tuple[OutputState, str]] = {
    "finished": ("Completed", "every output is in its store and verified"),
    "auto_stop": ("AutoStopped", "stopped by limits.auto_stop, outputs uploaded"),
    "target": ("TargetReached", "stopped by limits.target, outputs uploaded"),
}
"""Name and message of the state in which a training that did not fail ends, by its reason."""

_AHEAD_TIMEOUT_S = 5.0
"""A server that hangs must not keep a run from saving."""

_STOPPED_BY_HAND = "stopped by the person who started it"


class RunEnd:
    """How one pass through the stages of a run ends.

    Args:
        record: What is known of the run.
        secrets: What the ranks were given and nobody may find in the logs; read when it ends.

    Attributes:
        finisher: The process that goes on if this one is killed.
    """

    def __init__(self, record: RunRecord, secrets: set[str]) -> None:
        self.finisher = Finisher(record, secrets)
        self._record = record
        self._secrets = secrets
        self._failure: TrainjobError | None = None
        self._unsaved: str | None = None
        self._reason: str | None = None

    def of(self, stages: Callable[[], str]) -> RunReport:
        """Run the stages, and return the state in which the run ends.

        Args:
            stages: Returns why the training ended, when every output is uploaded.
        """
        try:
            ended = self._uninterrupted(stages)
        except KeyboardInterrupt as error:
            return self._stopped(error)
        except TerminationSignal as error:
            after = self._terminated(error)
            if after is None:
                raise
            return after
        with suppress(KeyboardInterrupt, TerminationSignal):
            self.finisher.dismiss()  # all is told, and nothing left to stop or to finish
        if self._reason is not None:
            self._drop_copies(self._reason)
        return ended

    def _uninterrupted(self, stages: Callable[[], str]) -> RunReport:
        try:
            reason = stages()
        except RunCancelled as error:
            self._save()
            return self._ended(Cancelled, "Cancelled", str(error), error)
        except TrainjobError as error:
            return self._failed(error)
        except Exception as error:  # the border of the process: nothing ends without a report
            self._note_failure(TrainjobError(f"{type(error).__name__}: {error}"))
            self._save()
            self._tell("Failed", self._failure)
            raise
        name, message = GOOD_STATES[reason]
        if empty := [output.name for output in self._record.outputs if not output.num_files]:
            message = f"{message}; there is no file in {', '.join(empty)}"
        if where := self._unsaved_checkpoints():
            self._record.note(Noted(where))
            message = f"{message}; {where}"
        ended = self._ended(Completed, name, message)
        self._reason = reason
        return ended

    def _failed(self, error: TrainjobError) -> RunReport:
        """Save what a failed training left, and return the state of the run."""
        self._note_failure(error)
        self._save()
        return self._ended(Failed, "Failed", str(error), error)

    def _note_failure(self, error: TrainjobError) -> None:
        """Keep why the run failed and tell it, whatever stops it from here on."""
        self.keep_failure(error)
        self._tell_ahead("Failed", error)

    def keep_failure(self, error: TrainjobError) -> None:
        """Keep why the run failed, and that it is not to be started again, for who finishes it."""
        self._failure = self.finisher.failure = error
        self.finisher.keep()

    def _stopped(self, error: KeyboardInterrupt) -> RunReport:
        """Save what a run left that a person stopped, unless that is stopped as well."""
        self._save_if_not_stopped(_STOPPED_BY_HAND)
        message = stopped_text(_STOPPED_BY_HAND, self._failure)
        return self._ended(Cancelled, "Cancelled", message, error)

    def _terminated(self, error: TerminationSignal) -> RunReport | None:
        """See that what a terminated run leaves is saved, by this process or the finisher.

        Returns:
            The state of the run; None if it ends in none, so that it is started again.
        """
        is_saved = self.finisher.start() and self.finisher.wait()
        if not is_saved:
            self._save_if_not_stopped(STOPPED_BY_SIGTERM)
        is_cancelling = _is_cancelling()
        state, name = Cancelled, "Cancelled"
        if self._failure and not is_cancelling:
            state, name = Failed, "Failed"
        message = stopped_text(STOPPED_BY_SIGTERM, self._failure)
        if not is_saved:
            result = self._tell(name, self._failure or STOPPED_BY_SIGTERM)
            message = self._with_saved(message, result)
        if not is_cancelling and self._failure is None:
            return None
        return cast(RunReport, state(message=message, data=self._failure or error))

    def _save_if_not_stopped(self, why: str) -> None:
        """Save what a stopped run left; if that is stopped as well, the report says so."""
        try:
            self._tell_ahead("Cancelled", self._failure or why)
            self._save()
        except (KeyboardInterrupt, TerminationSignal):
            self._note_unsaved("the saving was stopped, too")

    def _drop_copies(self, reason: str) -> None:
        """Remove what nobody needs any more; all is saved and told, and nothing left to stop."""
        job, workspace = self._record.job, self._record.workspace
        has_no_store = job is not None and job.checkpoints is None and reason != "finished"
        keeps_checkpoints = has_no_store or bool(self._unsaved_checkpoints())
        with suppress(KeyboardInterrupt, TerminationSignal):
            workspace.drop_copies(keeps_checkpoints=keeps_checkpoints)

    def _unsaved_checkpoints(self) -> str:
        """Say where checkpoints stay that may be in no store; empty if there are none.

        A process that has not trained, since the one before it did, looks into what that one noted.
        """
        job, workspace = self._record.job, self._record.workspace
        if job is None or job.checkpoints is None or self._record.is_saved("checkpoints"):
            return ""
        if not workspace.has_checkpoints():
            return ""
        with suppress(StoreError):
            was_told = "checkpoints" in self._record.saved_labels
            if not was_told and not unsent_checkpoints(job, workspace, self._record.run_id):
                return ""
        url = url_of_run(job.checkpoints.url, self._record.run_id)
        return f"checkpoints stay in {workspace.checkpoints}: not all are known to be at {url}"

    def _tell_ahead(self, state: str, error: BaseException | str) -> None:
        """Leave a report for the case that this process is killed while it saves."""
        record = self._record
        if not self._is_there_anything:
            return
        known = record.report(state, error)
        note = f"what the run left is being saved; if this stays, it is in {record.workspace.root}"
        try:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                ahead = replace(known, notes=(*known.notes, note))
                write_report(ahead, record.job, timeout_s=_AHEAD_TIMEOUT_S)
        except Exception as failure:  # noqa: BLE001 - the saving does not depend on a page
            get_run_logger().warning("why the run ends could not be told yet: %s", failure)

    def _tell(self, state: str, error: BaseException | str | None) -> RunReport:
        """Tell the watchers how the run ended, and leave the report beside it."""
        result = self._record.report(state, error)
        emit(RunEnded(result))
        try:
            report(result, self._record.job)
        except Exception as failure:  # noqa: BLE001 - how the run ended does not depend on a page
            get_run_logger().warning("the report could not be saved: %s", failure)
        return result

    @property
    def _is_there_anything(self) -> bool:
        """Whether anything to be saved can be on this machine."""
        record = self._record
        return record.job is not None and bool(record.attempts) and not record.is_behind

    def _save(self) -> None:
        """Take to the stores what a run that did not end well left, without a word of success."""
        record, job = self._record, self._record.job
        if job is None or not self._is_there_anything:
            return
        state: OutputState = "Failed" if self._failure else "Cancelled"
        # What a task could not get to a store was tried often enough.
        was_tried = isinstance(self._failure, StoreError) and self._failure.retryable
        with listening(record.note):
            try:
                settings = load_settings(job.store)
                if not record.has_trained:
                    save_checkpoints_and_logs(
                        job, record.run_id, settings, secrets=self._secrets, but=record.saved_labels
                    )
                save_outputs(
                    job,
                    record.run_id,
                    settings,
                    record.receipt_facts(state),
                    state,
                    patience_s=0 if was_tried else PATIENCE_S,
                )
            except Exception as error:  # noqa: BLE001 - the report has to say how the run ended
                is_told = isinstance(error, TrainjobError | OSError)
                self._note_unsaved(str(error) if is_told else f"{type(error).__name__}: {error}")

    def _note_unsaved(self, why: str) -> None:
        where = self._record.workspace.root
        self._unsaved = f"not everything was saved, it is in {where}: {why}"
        self._record.note(Noted(self._unsaved))

    def _ended(
        self, state: Any, name: str, message: str, error: BaseException | None = None
    ) -> RunReport:
        """Leave the report and return the state that the run ends in."""
        why = self._failure or (error if isinstance(error, TrainjobError) else error and message)
        result = self._tell(name, why)
        if error is not None:
            message = self._with_saved(message, result)
        # A flow may return a state; its caller gets the data, or the error that the data is.
        return cast(RunReport, state(name=name, message=message, data=error or result))

    def _with_saved(self, message: str, result: RunReport) -> str:
        """Add to the message of a state what was saved, if there was anything to save."""
        saved = [*result.saved, *([self._unsaved] if self._unsaved else [])]
        if not saved and result.state == "Failed":  # most that end so early are wrong jobs
            return message
        return with_saved(message, saved)


def _is_cancelling() -> bool:
    """Tell whether SIGTERM came since the run is cancelled, and not since its worker ends."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(flow_run.id).state
    except HTTPError:
        return False
    return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)
