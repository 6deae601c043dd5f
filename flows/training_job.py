"""The flow of a training job: five stages, each a task that can be retried."""

from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from prefect import flow
from prefect.client.orchestration import get_client
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
from trainjob.events import RunEnded, emit
from trainjob.job import TrainingJob
from trainjob.report import OutputReport, RunReport, StageReport
from trainjob.versions import installed_versions
from trainjob.workspace import Workspace


def _run_name() -> str:
    job = flow_run.parameters["job"]
    name = job["name"] if isinstance(job, dict) else job.name
    started = flow_run.scheduled_start_time or datetime.now(UTC)
    return f"{name}-{started:%Y%m%d-%H%M%S}"


@flow(name="training-job", flow_run_name=_run_name, persist_result=True)
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
    job = job.resolved(Path.cwd())
    run = _Run(job, str(flow_run.id))
    try:
        run.prepare()
        run.chain()
    except TrainjobError as error:
        return run.ended(Failed, "Failed", str(error), data=error)
    except KeyboardInterrupt:
        return run.ended(Cancelled, "Cancelled", "stopped by the person who started it")
    run.workspace.drop_copies()
    if run.auto_stopped:
        return run.ended(Completed, "AutoStopped", "stopped by limits.auto_stop, outputs uploaded")
    return run.ended(Completed, "Completed", "every output is in its store and verified")


@dataclass
class _Run:
    """One pass through the stages and what is known of it so far."""

    job: TrainingJob
    run_id: str
    stages: list[StageReport] = field(default_factory=list)
    outputs: tuple[OutputReport, ...] = ()
    command: str | None = None
    auto_stopped: bool = False

    @property
    def workspace(self) -> Workspace:
        return Workspace.of_run(self.run_id)

    def prepare(self) -> None:
        """Refuse a job that cannot run, and give the run the tags of its job.

        A retry is not asked again: its own output may lie half-uploaded in the store.
        """
        if (flow_run.run_count or 1) > 1:
            return
        problems = job_problems(self.job, load_settings(self.job.store))
        if problems:
            raise JobError(f"job {self.job.name!r}", problems)
        if self.job.tags:
            with get_client(sync_client=True) as client:
                known = client.read_flow_run(flow_run.id)
                client.update_flow_run(flow_run.id, tags=sorted({*known.tags, *self.job.tags}))

    def chain(self) -> None:
        """Run the five stages in order."""
        job, run_id = self.job, self.run_id
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

    def ended(self, state: Any, name: str, message: str, data: Any = None) -> RunReport:
        """Leave the report and return the state that the run ends in."""
        result = RunReport(
            job=self.job.name,
            run_id=self.run_id,
            state=name,
            stages=tuple(self.stages),
            outputs=self.outputs,
            logs=str(self.workspace.logs) if self.workspace.logs.exists() else None,
            command=self.command,
        )
        if data is not None or name == "Cancelled":
            result = replace(result, error=message)
        emit(RunEnded(result))
        report(result, self.job)
        # A flow may return a state; its caller gets the data, or the error that the data is.
        return cast(RunReport, state(name=name, message=message, data=data or result))

    def _note(self, done: Done[Any]) -> Any:
        self.stages.append(StageReport(done.stage, done.seconds, done.summary))
        return done.value
