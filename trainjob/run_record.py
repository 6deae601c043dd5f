"""What is known of a run while it goes on, gathered from its events for the report at its end."""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from trainjob.attempts import OUTCOMES
from trainjob.events import (
    AttemptEnded,
    AttemptStarted,
    Event,
    MetricsSummarised,
    Noted,
    Saved,
    StageFailed,
)
from trainjob.job import TrainingJob, url_of_run
from trainjob.launch.dead_flow import end_of_dead_flow
from trainjob.launch.failure import Explained
from trainjob.metrics.summary import MetricSummary
from trainjob.registry.registry import Registry
from trainjob.report import AttemptReport, OutputReport, RunReport, StageReport
from trainjob.spent import Spent, spent_by
from trainjob.storage.failures import local_failures
from trainjob.values import counted, format_size
from trainjob.versions import installed_versions
from trainjob.workspace import Workspace

_MAX_MISSING = 5
_FAILED = "failed"
_ATTEMPTS = TypeAdapter(list[AttemptReport])


@dataclass
class RunRecord:
    """A run so far.

    Attributes:
        run_id: Its id.
        name: Name of its job, as far as it can be read.
        job: The job; None until it was read.
        stages: The stages that ended, in order.
        attempts: The attempts to train, in order, the one that goes on included.
        outputs: The outputs that are in their stores, verified.
        command: What every rank executes.
        facts: What receipts say of the run beside job, stages and versions; JSON values.
        number: Which run of its job it is, 1 for the first; None: nobody knows.
        rerun_of: Id of the run whose job it was made from; None: of none.
        clock: Tells seconds that only grow.
    """

    run_id: str
    name: str
    job: TrainingJob | None = None
    stages: list[StageReport] = field(default_factory=list)
    attempts: list[AttemptReport] = field(default_factory=list)
    outputs: tuple[OutputReport, ...] = ()
    command: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    number: int | None = None
    rerun_of: str | None = None
    _saved: dict[str, Saved] = field(default_factory=dict)
    _metrics: tuple[MetricSummary, ...] = ()
    _notes: list[str] = field(default_factory=list)
    _attempt_since: float | None = None
    _tried_since: dict[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic

    @property
    def workspace(self) -> Workspace:
        """The folders of the run on this machine."""
        return Workspace.of_run(self.run_id)

    def note(self, event: Event) -> None:
        """Take from an event what the report needs."""
        match event:
            case StageFailed() if event.will_retry:
                self._tried_since.setdefault(event.stage, self.clock() - event.seconds)
            case StageFailed():
                self.add_stage(StageReport(event.stage, event.seconds, _FAILED))
            case AttemptStarted():
                self._keep(_begun(event, self.workspace))
                self._attempt_since = self.clock()
            case AttemptEnded():
                self._attempt_since = None
                self._keep(_ended(event, self.attempts[-1]))
            case Saved():
                self._saved[event.label] = event
            case MetricsSummarised():
                self._metrics = event.metrics
            case Noted():
                self._notes.append(event.text)
            case _:
                pass

    def add_stage(self, stage: StageReport) -> None:
        """Take a stage that has ended; the time of its last try becomes that of all its tries.

        The machine was held meanwhile, also in the pauses between them.
        """
        since = self._tried_since.pop(stage.name, None)
        seconds = stage.seconds if since is None else self.clock() - since
        self.stages.append(replace(stage, seconds=seconds))

    def take_over(self, num_attempts: int, *, is_explained: bool = False) -> None:
        """Take the attempts that earlier processes of the run made.

        Args:
            num_attempts: How many there were: those of another machine left nothing here.
            is_explained: Whether it is told elsewhere why one died with the process of its flow.
        """
        with suppress(OSError, ValueError):  # a power cut may leave a file without its content
            self.attempts = _ATTEMPTS.validate_json(self._attempts_file.read_bytes())
        num_notes = len(self._notes)
        known = {attempt.number: self._with_ending(attempt) for attempt in self.attempts}
        if is_explained:
            del self._notes[num_notes:]
        elsewhere = {n: _elsewhere(n) for n in range(num_attempts) if n not in known}
        self.attempts = [row for _, row in sorted((known | elsewhere).items())]

    def _with_ending(self, attempt: AttemptReport) -> AttemptReport:
        """Return the row of an attempt with what the process of its flow did not live to say."""
        if attempt.seconds is not None or not attempt.logs:
            return attempt
        ended = end_of_dead_flow(Path(attempt.logs) / "records")
        if ended is None:
            return attempt
        timed = replace(attempt, seconds=ended.seconds)
        if ended.rule is None:
            return timed
        rule = ended.rule
        self._notes.append(f"{rule.name}: {rule.meaning} Next: {rule.next_step}")
        return replace(timed, outcome=rule.name)

    def read_job(
        self,
        given: TrainingJob | dict[str, Any],
        source: str,
        registry: Registry | None = None,
    ) -> TrainingJob:
        """Return the job, with the saved versions and flavor that an earlier process found.

        Args:
            given: The job, or its keys and values.
            source: What the error message calls it.
            registry: Where saved versions are; absent: in the folder of this machine.

        Raises:
            JobError: With all mistakes at once.
        """
        if isinstance(given, TrainingJob):
            return given
        kept = self._kept_job()
        if kept is not None:
            return TrainingJob.restored(kept, source)
        return TrainingJob.parse(given, source, registry)

    def keep_job(self) -> None:
        """Keep a job whose saved versions or flavor may be others when it is read again."""
        job = self.job
        if job and (job.saved_versions or job.resources.flavor) and self._kept_job() is None:
            partial = self._job_file.with_suffix(".part")
            with local_failures(str(self._job_file)):
                with partial.open("w", encoding="utf-8") as file:
                    file.write(job.model_dump_json())
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(self._job_file)

    def _kept_job(self) -> dict[str, Any] | None:
        """Return the keys and values of the job that was kept; None if it cannot be read."""
        try:
            content = json.loads(self._job_file.read_bytes())
        except (FileNotFoundError, ValueError):  # a disk may lose the content that it had
            return None
        return content if isinstance(content, dict) else None

    @property
    def _job_file(self) -> Path:
        return self.workspace.root / "job.json"

    @property
    def saved_labels(self) -> frozenset[str]:
        """Labels of what was taken to a store, or found missing there."""
        return frozenset(self._saved)

    def is_saved(self, label: str) -> bool:
        """Tell whether all of what is called so is known to be in its store."""
        saved = self._saved.get(label)
        return saved is not None and not saved.missing

    @property
    def has_trained(self) -> bool:
        """Whether the training ended well, and so made its last copies of checkpoints and logs."""
        return any(stage.name == "train" and stage.summary != _FAILED for stage in self.stages)

    @property
    def is_behind(self) -> bool:
        """Whether the last attempt was on another machine, and nothing of it is here yet.

        What lies here must then replace nothing in the stores.
        """
        return any(row.number > self.workspace.last_attempt for row in self.attempts)

    @property
    def _attempts_file(self) -> Path:
        return self.workspace.root / "attempts.json"

    def _keep(self, attempt: AttemptReport) -> None:
        """Keep the row of an attempt, for the next process too if this one is killed."""
        others = [row for row in self.attempts if row.number != attempt.number]
        self.attempts = [*others, attempt]  # in one step, for whoever is interrupted
        partial = self._attempts_file.with_suffix(".part")
        # A full disk, or a text that cannot be written, must not end a training over its report.
        with suppress(OSError, ValueError):
            partial.write_bytes(_ATTEMPTS.dump_json(self.attempts))
            partial.replace(self._attempts_file)

    def receipt_facts(self, state: str) -> dict[str, Any]:
        """Return what a receipt says of the run, as JSON values.

        Args:
            state: The state in which the run ends.
        """
        return {
            **self.facts,
            "job": self.job.model_dump(mode="json") if self.job else None,
            "reason": state,
            "used": self.job.saved_versions if self.job else [],
            "metrics": {m.name: m.last for m in self._metrics if math.isfinite(m.last)},
            "versions": installed_versions(),
            "stages": {stage.name: round(stage.seconds, 3) for stage in self.stages},
            "attempts": len(self.attempts),
        }

    def report(self, state: str, error: BaseException | str | None) -> RunReport:
        """Return the report of the run that ends in `state`, with the error if it failed."""
        logs = self.workspace.logs
        outputs = self.job.outputs if self.job else ()
        return RunReport(
            job=self.name,
            run_id=self.run_id,
            used=tuple(self.job.saved_versions) if self.job else (),
            state=state,
            stages=tuple(self.stages),
            outputs=self.outputs,
            logs=str(logs) if logs.exists() else None,
            command=self.command,
            error=None if error is None else str(error),
            store=self.job.store if self.job else None,
            attempts=tuple(self.attempts),
            failure=error.failure if isinstance(error, Explained) else None,
            saved=tuple(map(saved_line, self._saved.values())),
            metrics=self._metrics,
            notes=tuple(dict.fromkeys([*self._notes, *_earlier_outputs(self.workspace)])),
            output_urls={channel.name: url_of_run(channel.url, self.run_id) for channel in outputs},
            spent=self._spent(),
            number=self.number,
            rerun_of=self.rerun_of,
        )

    def _spent(self) -> Spent | None:
        if self.job is None or not self.stages:
            return None
        attempts = [attempt.seconds for attempt in self.attempts]
        if self._attempt_since is not None:  # of a stopped run, another process sees the end
            attempts[-1] = self.clock() - self._attempt_since
        return spent_by(self.job, {stage.name: stage.seconds for stage in self.stages}, attempts)


def saved_line(saved: Saved) -> str:
    """Return in one line what is in a store, or what is missing there."""
    if not saved.num_files and not saved.missing:
        return f"{saved.label}: there was nothing to save"
    files = f"{counted(saved.num_files, 'file')}, {format_size(saved.size_bytes)}"
    shown = ", ".join(saved.missing[:_MAX_MISSING])
    more = len(saved.missing) - _MAX_MISSING
    missing = f"; MISSING: {shown}" if saved.missing else ""
    missing += f" and {more} more" if more > 0 else ""
    return f"{saved.label}: {files} at {saved.url}{missing}"


def with_saved(message: str, lines: Sequence[str]) -> str:
    """Add to the message of a state what was saved of the run."""
    separator = "\n" if "\n" in message else ". "
    return f"{message}{separator}Saved: {'; '.join(lines) or 'there was nothing to save'}"


def stopped_text(why: str, failure: BaseException | str | None) -> str:
    """Say why a run was stopped, and that it had failed by then if it had."""
    return f"{why}, after it had failed: {failure}" if failure else why


def _earlier_outputs(workspace: Workspace) -> list[str]:
    """Say where the outputs of earlier attempts are, of which the store may have no copy."""
    previous = workspace.previous
    if not any(path.is_file() for path in previous.rglob("*")):
        return []
    return [f"what earlier attempts had written to the outputs is in {previous}, a folder each"]


def _begun(event: AttemptStarted, workspace: Workspace) -> AttemptReport:
    """Return the row of an attempt as it is to stay if nobody can say how it ended."""
    logs = str(workspace.attempt_logs(event.attempt))
    return AttemptReport(event.attempt, None, "its process was ended", event.resumed_from, logs)


def _elsewhere(number: int) -> AttemptReport:
    """Return the row of an attempt that was made on another machine, or before it trained."""
    return AttemptReport(number, None, "nothing of it is on this machine", None, "")


def _ended(event: AttemptEnded, begun: AttemptReport) -> AttemptReport:
    if event.error is not None:
        outcome = str(event.error).partition("\n")[0]
    else:
        outcome = OUTCOMES.get(event.reason or "", "interrupted")
    return replace(begun, seconds=event.seconds, outcome=outcome)
