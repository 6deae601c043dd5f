"""The flow of a training job: five stages, each a task that can be retried."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from httpx import HTTPError
from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import PrefectException, TerminationSignal
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Completed, Failed

from blocks.object_store import load_settings
from blocks.saved_secrets import remembering_secrets
from flows.delivery import Delivery, delivery_of, holding, note_restarts
from flows.finisher import STOPPED_BY_SIGTERM, Finisher
from flows.outliving import outlive_worker
from flows.quotas import holding_quotas
from flows.registry_place import chosen_registry
from flows.run_events import tell_attempt, tell_restart
from flows.server_check import check_with_server
from tasks.fetch_code import fetch_code
from tasks.inject_hyperparameters import inject_hyperparameters
from tasks.install_requirements import install_requirements
from tasks.report import report
from tasks.stage import Done
from tasks.stage_inputs import stage_inputs
from tasks.train import train
from tasks.upload_outputs import upload_outputs
from trainjob.errors import JobError, RunCancelled, RunLost, StoreError, TrainjobError
from trainjob.events import AttemptEnded, Event, Noted, RunEnded, emit, listening
from trainjob.handover import handing_over_to
from trainjob.job import TrainingJob
from trainjob.report import RunReport, StageReport
from trainjob.run_lock import alone_in
from trainjob.run_record import RunRecord
from trainjob.saving import save_checkpoints_and_logs, save_outputs
from trainjob.storage.receipt import OutputState
from trainjob.values import counted

_STATES: dict[str, tuple[OutputState, str]] = {
    "finished": ("Completed", "every output is in its store and verified"),
    "auto_stop": ("AutoStopped", "stopped by limits.auto_stop, outputs uploaded"),
    "target": ("TargetReached", "stopped by limits.target, outputs uploaded"),
}
"""Name and message of the state in which a training that did not fail ends, by its reason."""

_is_checked: ContextVar[bool] = ContextVar("trainjob_is_checked", default=False)


@contextmanager
def already_checked() -> Iterator[None]:
    """Run flows in this block without the check at their start, which the caller just made."""
    token = _is_checked.set(True)
    try:
        yield
    finally:
        _is_checked.reset(token)


def _run_name() -> str:
    started = flow_run.scheduled_start_time or datetime.now(UTC)
    return f"{_name_of(flow_run.parameters.get('job'))}-{started:%Y%m%d-%H%M%S}"


def _name_of(job: Any) -> str:
    name = job.get("name") if isinstance(job, dict) else getattr(job, "name", None)
    return name if isinstance(name, str) else "training-job"


def _refuse_problems(job: TrainingJob, source: str) -> None:
    findings = check_with_server(job)
    for problem in findings.warnings:
        get_run_logger().warning("%s [%s]", problem, problem.id)
    if findings.cost:
        get_run_logger().info("cost: %s", findings.cost)
    get_run_logger().info("not checked: %s", "; ".join(findings.not_checked))
    # What may pass is left to the stages, which try again.
    lasting = [problem for problem in findings.errors if not problem.may_pass]
    if lasting:
        raise JobError(source, lasting)


def _is_cancelling() -> bool:
    """Tell whether SIGTERM came since the run is cancelled, and not since its worker ends."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(flow_run.id).state
    except HTTPError:
        return False
    return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)


# Parameters are not validated by Prefect: its message has one problem at a time and no advice.
@flow(name="training-job", flow_run_name=_run_name, persist_result=True, validate_parameters=False)
def training_job(job: TrainingJob) -> RunReport:
    """Train one job: stage inputs, fetch code, inject hyperparameters, train, upload outputs.

    The run is Completed only if every output is in its store and verified. A failed run that is
    retried goes on at the stage that failed, on the machine that has its workspace.

    Args:
        job: What to train, on what, with which parameters, and where the results go.

    Returns:
        What ran, where the outputs are, how long each stage took.

    Raises:
        TrainjobError: Why the run failed.
    """
    outlive_worker()
    with ExitStack() as held:
        return _run_to_its_end(_Run(RunRecord(str(flow_run.id), _name_of(job)), held), job)


def _run_to_its_end(run: "_Run", job: TrainingJob) -> RunReport:
    try:
        with (
            listening(run.note),
            handing_over_to(run.hand_over),
            remembering_secrets(run.secrets),
        ):
            run.prepare(job)
            reason = run.chain()
    except RunCancelled as error:
        return run.cancelled(str(error), error)
    except TrainjobError as error:
        return run.failed(error)
    except KeyboardInterrupt as error:
        return run.cancelled("stopped by the person who started it", error)
    except TerminationSignal as error:
        run.terminated()
        if _is_cancelling():
            return run.cancelled_meanwhile(error)
        raise
    except Exception as error:  # the border of the process: nothing ends without a report
        run.tell("Failed", f"{type(error).__name__}: {error}")
        raise
    return run.completed(reason)


class _Run:
    """One pass through the stages, and what is done when it ends in one way or another.

    Args:
        record: What is known of the run.
        held: Keeps what the run holds until everything of it is saved and told.

    Attributes:
        secrets: What the ranks were given and nobody may find in the logs; in memory alone.
    """

    def __init__(self, record: RunRecord, held: ExitStack) -> None:
        self.record = record
        self.secrets: set[str] = set()
        self._held = held
        self._finisher = Finisher(record, self.secrets)
        self._num_restarts = 0

    def note(self, event: Event) -> None:
        """Take from an event what the report needs, and tell the server of restarts."""
        self.record.note(event)
        if not isinstance(event, AttemptEnded):
            return
        self._num_restarts += event.will_restart
        tell_attempt(self.record.run_id, event, self._num_restarts)
        if event.will_restart:
            try:
                note_restarts(self.record.run_id, self._num_restarts)
            except (HTTPError, PrefectException) as error:  # the training goes on without it
                get_run_logger().warning("the restart could not be counted: %s", error)

    def prepare(self, given: TrainingJob | dict[str, Any]) -> None:
        """Read the job, refuse one that cannot run, and tell Prefect what it needs to know."""
        record = self.record
        source = f"job {record.name!r}"
        record.job = job = record.read_job(given, source, chosen_registry()).resolved(Path.cwd())
        delivery = delivery_of(record.run_id)
        # A retry goes on where the first pass stopped; its own output may lie half-uploaded.
        is_resumed = delivery.number > 1
        if not is_resumed and not _is_checked.get():
            _refuse_problems(job, source)
        grace_s = job.limits.grace.total_seconds()
        self._finisher.lock = self._held.enter_context(alone_in(record.workspace, grace_s=grace_s))
        record.keep_job()
        record.take_over(delivery.restarts)
        self._take_delivery(job, delivery)
        self._warn_of_pool(job, delivery.pool)
        if job.tags:
            with get_client(sync_client=True) as client:
                known = client.read_flow_run(flow_run.id)
                client.update_flow_run(flow_run.id, tags=sorted({*known.tags, *job.tags}))
        is_restartable = job.limits.auto_restart > 0
        self._held.enter_context(holding(delivery, is_restartable=is_restartable))
        self._held.enter_context(holding_quotas(job))

    def _warn_of_pool(self, job: TrainingJob, pool: str | None) -> None:
        """Say that the flavor of a job is of another pool than the one whose worker runs it.

        Only a submit from the terminal looks: in the UI, a person chooses the deployment.
        """
        flavor = job.resources.flavor
        wanted = flavor.pool if flavor else None
        if wanted is None or pool is None or wanted in (pool, deployment.name):
            return
        text = (
            f"the flavor {flavor} is of the pool {wanted!r}, and the run is in the pool {pool!r}, "
            f"which may have other machines; start it by the deployment training-job/{wanted}"
        )
        get_run_logger().warning(text)
        self.record.note(Noted(text))

    def _take_delivery(self, job: TrainingJob, delivery: Delivery) -> None:
        """Take into account why this process was started.

        Raises:
            RunCancelled: If the run was being cancelled.
            RunLost: If it was killed too often.
        """
        self._num_restarts = delivery.restarts
        if delivery.was_cancelled:
            raise RunCancelled("cancelled; its process was killed while the run was being stopped")
        if delivery.is_redelivered and delivery.restarts > job.limits.auto_restart:
            raise RunLost(
                "the process of the run was killed, and limits.auto_restart allows "
                f"{counted(job.limits.auto_restart, 'restart')}, which is used up; retry the run "
                "to go on from its last checkpoint, or raise the limit"
            )
        if delivery.number > 1:  # the server counts none for a first process
            note_restarts(self.record.run_id, self._num_restarts)
            why = "its process was killed" if delivery.is_redelivered else "a person has retried it"
            tell_restart(self.record.run_id, why, self._num_restarts)

    def chain(self) -> str:
        """Run the stages in order; return why the training ended."""
        job, run_id = cast(TrainingJob, self.record.job), self.record.run_id
        facts = self.record.facts
        facts["inputs"] = [asdict(channel) for channel in self._note(stage_inputs(job, run_id))]
        facts["code"] = asdict(self._note(fetch_code(job, run_id)))
        if job.environment.requirements:
            self._note(install_requirements(job, run_id))
        program = self._note(inject_hyperparameters(job, run_id))
        facts["argv"] = list(program.argv)
        self.record.command = str(program)
        trained = self._note(train(job, run_id, program, self._num_restarts))
        reason: str = trained.result.reason
        self._upload(_STATES[reason][0])
        return reason

    def completed(self, reason: str) -> RunReport:
        """Return the state of a run whose training did not fail."""
        name, message = _STATES[reason]
        job = cast(TrainingJob, self.record.job)
        keeps_checkpoints = job.checkpoints is None and reason != "finished"
        self.record.workspace.drop_copies(keeps_checkpoints=keeps_checkpoints)
        return self._ended(Completed, name, message)

    def failed(self, error: TrainjobError) -> RunReport:
        """Save what a failed training left, and return the state of the run."""
        if isinstance(error, StoreError):  # it was tried often enough
            if self.record.attempts:
                self.record.note(Noted(f"the outputs are in {self.record.workspace.outputs}"))
        else:
            self._save("Failed")
        return self._ended(Failed, "Failed", str(error), error)

    def cancelled(self, message: str, error: BaseException) -> RunReport:
        """Save what a stopped run left, and return its state."""
        self._save("Cancelled")
        return self._ended(Cancelled, "Cancelled", message, error)

    def hand_over(self) -> bool:
        """Let another process save what the run leaves, if this one is going to be killed."""
        return self._finisher.start()

    def terminated(self) -> None:
        """See that what a terminated run leaves is saved, by this process or the finisher."""
        if self._finisher.start() and self._finisher.wait():
            return
        self._save("Cancelled")
        self.tell("Cancelled", STOPPED_BY_SIGTERM)

    @staticmethod
    def cancelled_meanwhile(error: BaseException) -> RunReport:
        """Return the state of a run that its worker has not declared cancelled by itself."""
        return cast(RunReport, Cancelled(message=STOPPED_BY_SIGTERM, data=error))

    def tell(self, state: str, error: BaseException | str | None) -> RunReport:
        """Tell the watchers how the run ended, and leave the report beside it."""
        result = self.record.report(state, error)
        emit(RunEnded(result))
        try:
            report(result, self.record.job)
        except Exception as failure:  # noqa: BLE001 - how the run ended does not depend on a page
            get_run_logger().warning("the report could not be saved: %s", failure)
        return result

    def _upload(self, state: OutputState) -> None:
        facts = self.record.receipt_facts(state)
        job = cast(TrainingJob, self.record.job)
        done = upload_outputs(job, self.record.run_id, facts, state)
        self.record.outputs = tuple(self._note(done))

    def _save(self, state: OutputState) -> None:
        """Take to the stores what a run that did not end well left, without a word of success."""
        record, job = self.record, self.record.job
        if job is None or not record.attempts:
            return
        with listening(record.note):
            try:
                settings = load_settings(job.store)
                save_checkpoints_and_logs(
                    job, record.run_id, settings, secrets=self.secrets, but=record.saved_labels
                )
                save_outputs(job, record.run_id, settings, record.receipt_facts(state), state)
            except (TrainjobError, OSError) as error:  # the report has to say how the run ended
                where = record.workspace.root
                record.note(Noted(f"not everything was saved, it is in {where}: {error}"))

    def _ended(
        self, state: Any, name: str, message: str, error: BaseException | None = None
    ) -> RunReport:
        """Leave the report and return the state that the run ends in."""
        result = self.tell(name, error if isinstance(error, TrainjobError) else error and message)
        data = error if isinstance(error, TrainjobError) else result
        # A flow may return a state; its caller gets the data, or the error that the data is.
        return cast(RunReport, state(name=name, message=message, data=data))

    def _note(self, done: Done[Any]) -> Any:
        self.record.stages.append(StageReport(done.stage, done.seconds, done.summary))
        return done.value
