"""The flow of a training job: five stages, each a task that can be retried."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.runtime import deployment, flow_run

from blocks.saved_secrets import remembering_secrets
from flows.delivery import Delivery, delivery_of, holding, keep_tally
from flows.local_places import refuse_lost_places
from flows.outliving import outlive_worker
from flows.quotas import holding_quotas
from flows.registry_place import chosen_registry
from flows.run_end import GOOD_STATES, RunEnd
from flows.run_events import tell_attempt, tell_restart
from flows.runs import RERUN_OF_LABEL, number_of
from flows.server_check import check_with_server
from flows.tally import Tally
from tasks.fetch_code import fetch_code
from tasks.inject_hyperparameters import inject_hyperparameters
from tasks.install_requirements import install_requirements
from tasks.stage import Done
from tasks.stage_inputs import stage_inputs
from tasks.train import train
from tasks.upload_outputs import upload_outputs
from trainjob.attempts import Earlier
from trainjob.errors import JobError, RunCancelled, RunLost, TrainjobError
from trainjob.events import AttemptEnded, AttemptStarted, Event, Noted, StageFailed, listening
from trainjob.handover import handing_over_to
from trainjob.job import TrainingJob
from trainjob.report import RunReport, StageReport
from trainjob.run_lock import alone_in
from trainjob.run_record import RunRecord
from trainjob.storage.receipt import OutputState
from trainjob.values import counted

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
        run = _Run(RunRecord(str(flow_run.id), _name_of(job)), held)
        return run.end.of(partial(run.stages, job))


class _Run:
    """One pass through the stages.

    Args:
        record: What is known of the run.
        held: Keeps what the run holds until everything of it is saved and told.

    Attributes:
        end: What is done when it ends, in one way or another.
    """

    def __init__(self, record: RunRecord, held: ExitStack) -> None:
        self.record = record
        # What the ranks were given and nobody may find in the logs; in memory alone.
        self._secrets: set[str] = set()
        self.end = RunEnd(record, self._secrets)
        self._held = held
        self._earlier = Earlier()
        self._tally = Tally(self._earlier)

    def stages(self, given: TrainingJob | dict[str, Any]) -> str:
        """Run the stages in order; return why the training ended."""
        with (
            listening(self._note_event),
            handing_over_to(self.end.finisher.start),
            remembering_secrets(self._secrets),
        ):
            self._prepare(given)
            return self._chain()

    def _note_event(self, event: Event) -> None:
        """Take from an event what the report and the next process need; wait for nobody."""
        self.record.note(event)
        self._tally.note(event)
        if isinstance(event, AttemptStarted | StageFailed):
            self.end.finisher.keep()  # of secrets, too: the ranks are given them now
        if isinstance(event, AttemptEnded):
            if isinstance(event.error, TrainjobError) and not event.will_restart:
                self.end.keep_failure(event.error)  # what it leaves may take long to save
            tell_attempt(self.record.run_id, event, self._tally.num_restarts)

    def _prepare(self, given: TrainingJob | dict[str, Any]) -> None:
        """Read the job, refuse one that cannot run, and tell Prefect what it needs to know."""
        record = self.record
        source = f"job {record.name!r}"
        record.job = job = record.read_job(given, source, chosen_registry()).resolved(Path.cwd())
        delivery = delivery_of(record.run_id)
        # A retry goes on where the first pass stopped; its own output may lie half-uploaded.
        is_resumed = delivery.number > 1
        if is_resumed:
            refuse_lost_places(job, source)
        elif not _is_checked.get():
            _refuse_problems(job, source)
        grace_s = job.limits.grace.total_seconds()
        self.end.finisher.lock = self._held.enter_context(
            alone_in(record.workspace, grace_s=grace_s)
        )
        self._held.callback(self.end.finisher.dismiss)
        record.keep_job()
        record.take_over(delivery.earlier.num_attempts)
        is_restartable = job.limits.auto_restart > 0
        self.end.finisher.num_starts = delivery.num_starts
        self.end.finisher.is_restartable = is_restartable and delivery.deployment_id is not None
        self._take_delivery(job, delivery)
        self._warn_of_pool(job, delivery.pool)
        self._note_version(job)
        self._held.enter_context(holding(delivery, self._tally, is_restartable=is_restartable))
        self._held.enter_context(holding_quotas(job))
        self.end.finisher.keep()

    def _note_version(self, job: TrainingJob) -> None:
        """Take which run of its job this is, and give it the job's tags."""
        with get_client(sync_client=True) as client:
            known = client.read_flow_run(flow_run.id)
            self.record.number = number_of(client, known)
            rerun_of = known.labels.get(RERUN_OF_LABEL)
            self.record.rerun_of = None if rerun_of is None else str(rerun_of)
            if job.tags:
                client.update_flow_run(flow_run.id, tags=sorted({*known.tags, *job.tags}))

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
        self._earlier = delivery.earlier
        self._tally = Tally(self._earlier)
        if delivery.was_cancelled:
            raise RunCancelled("cancelled; its process was killed while the run was being stopped")
        num_restarts = delivery.earlier.num_restarts
        if num_restarts > job.limits.auto_restart:
            raise RunLost(
                "the process of the run was killed, and limits.auto_restart allows "
                f"{counted(job.limits.auto_restart, 'restart')}, which is used up; retry the run "
                "to go on from its last checkpoint, or raise the limit"
            )
        if delivery.number > 1:  # the server counts none for a first process
            keep_tally(self.record.run_id, self._tally)
            why = "its process was killed" if delivery.is_redelivered else "a person has retried it"
            tell_restart(self.record.run_id, why, num_restarts)

    def _chain(self) -> str:
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
        trained = self._note(train(job, run_id, program, self._earlier))
        reason: str = trained.result.reason
        self._upload(GOOD_STATES[reason][0])
        return reason

    def _upload(self, state: OutputState) -> None:
        facts = self.record.receipt_facts(state)
        job = cast(TrainingJob, self.record.job)
        done = upload_outputs(job, self.record.run_id, facts, state)
        self.record.outputs = tuple(self._note(done))

    def _note(self, done: Done[Any]) -> Any:
        self.record.add_stage(StageReport(done.stage, done.seconds, done.summary))
        self.end.finisher.keep()
        return done.value
