"""The flow of a training job: five stages, each a task that can be retried."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from blocks.object_store import load_settings
from tasks.fetch_code import fetch_code
from tasks.inject_hyperparameters import inject_hyperparameters
from tasks.report import report
from tasks.stage import Done
from tasks.stage_inputs import stage_inputs
from tasks.train import train
from tasks.upload_outputs import upload_outputs
from trainjob.check import job_problems
from trainjob.errors import JobError, TrainjobError
from trainjob.events import Event, RunEnded, StageFailed, emit, listening
from trainjob.job import TrainingJob
from trainjob.report import OutputReport, RunReport, StageReport
from trainjob.versions import installed_versions
from trainjob.workspace import Workspace

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
    run = _Run(str(flow_run.id), _name_of(job))
    try:
        with listening(run.note_failure):
            run.prepare(job)
            run.chain()
    except TrainjobError as error:
        return run.ended(Failed, "Failed", str(error), error)
    except KeyboardInterrupt as error:
        return run.ended(Cancelled, "Cancelled", "stopped by the person who started it", error)
    except TerminationSignal:
        # Prefect decides whether this is a cancelled run or a crashed one.
        run.tell("Cancelled", "stopped by SIGTERM: the run was cancelled, or its worker ended")
        raise
    except Exception as error:  # the border of the process: nothing ends without a report
        run.tell("Failed", f"{type(error).__name__}: {error}")
        raise
    run.workspace.drop_copies()
    if run.auto_stopped:
        return run.ended(Completed, "AutoStopped", "stopped by limits.auto_stop, outputs uploaded")
    return run.ended(Completed, "Completed", "every output is in its store and verified")


@dataclass
class _Run:
    """One pass through the stages and what is known of it so far."""

    run_id: str
    name: str
    job: TrainingJob | None = None
    stages: list[StageReport] = field(default_factory=list)
    outputs: tuple[OutputReport, ...] = ()
    command: str | None = None
    auto_stopped: bool = False

    @property
    def workspace(self) -> Workspace:
        return Workspace.of_run(self.run_id)

    def prepare(self, given: TrainingJob | dict[str, Any]) -> None:
        """Read the job, refuse one that cannot run, and give the run the tags of its job."""
        source = f"job {self.name!r}"
        job = given if isinstance(given, TrainingJob) else TrainingJob.parse(given, source)
        self.job = job.resolved(Path.cwd())
        # A retry goes on where the first pass stopped; its own output may lie half-uploaded.
        is_resumed = (flow_run.run_count or 1) > 1 and self.workspace.root.exists()
        if not is_resumed and not _is_checked.get():
            problems = job_problems(self.job, load_settings(job.store))
            # What may pass is left to the stages, which try again.
            lasting = [problem for problem in problems if not problem.may_pass]
            if lasting:
                raise JobError(source, lasting)
        if job.tags:
            with get_client(sync_client=True) as client:
                known = client.read_flow_run(flow_run.id)
                client.update_flow_run(flow_run.id, tags=sorted({*known.tags, *job.tags}))

    def chain(self) -> None:
        """Run the five stages in order."""
        job, run_id = cast(TrainingJob, self.job), self.run_id
        inputs = self._note(stage_inputs(job, run_id))
        code = self._note(fetch_code(job, run_id))
        program = self._note(inject_hyperparameters(job, run_id))
        self.command = str(program)
        trained = self._note(train(job, run_id, program))
        self.auto_stopped = trained.result.reason == "auto_stop"
        facts = {
            "job": job.model_dump(mode="json"),
            "code": asdict(code),
            "inputs": [asdict(channel) for channel in inputs],
            "argv": list(program.argv),
            "reason": trained.result.reason,
            "versions": installed_versions(),
            "stages": {stage.name: round(stage.seconds, 3) for stage in self.stages},
        }
        self.outputs = tuple(self._note(upload_outputs(job, run_id, facts)))

    def note_failure(self, event: Event) -> None:
        """Keep the stage that failed for the report."""
        if isinstance(event, StageFailed) and not event.will_retry:
            self.stages.append(StageReport(event.stage, event.seconds, "failed"))

    def ended(
        self, state: Any, name: str, message: str, error: BaseException | None = None
    ) -> RunReport:
        """Leave the report and return the state that the run ends in."""
        result = self.tell(name, message if error else None)
        data = error if isinstance(error, TrainjobError) else result
        # A flow may return a state; its caller gets the data, or the error that the data is.
        return cast(RunReport, state(name=name, message=message, data=data))

    def tell(self, state: str, error: str | None) -> RunReport:
        """Tell the watchers how the run ended, and leave the report beside it."""
        logs = self.workspace.logs
        result = RunReport(
            job=self.name,
            run_id=self.run_id,
            state=state,
            stages=tuple(self.stages),
            outputs=self.outputs,
            logs=str(logs) if logs.exists() else None,
            command=self.command,
            error=error,
            store=self.job.store if self.job else None,
        )
        emit(RunEnded(result))
        try:
            report(result, self.job)
        except Exception as failure:  # noqa: BLE001 - how the run ended does not depend on a page
            get_run_logger().warning("the report could not be saved: %s", failure)
        return result

    def _note(self, done: Done[Any]) -> Any:
        self.stages.append(StageReport(done.stage, done.seconds, done.summary))
        return done.value
