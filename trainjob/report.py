"""What a run says at its end: for programs as values, for people as markdown."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from trainjob.algorithm import ScriptAlgorithm
from trainjob.cost import amount, cost_text
from trainjob.failure import Failure
from trainjob.failure_card import card_markdown
from trainjob.job import TrainingJob
from trainjob.metrics.summary import TABLE_HEAD, MetricSummary, table_rows
from trainjob.spent import Spent
from trainjob.storage.claim import Exclusion
from trainjob.values import counted, format_size

GOOD_ENDS = ("Completed", "AutoStopped", "TargetReached")
"""The states of a run whose training did not fail and whose outputs are in their stores."""


@dataclass(frozen=True, slots=True)
class StageReport:
    """One stage that ran; `seconds` are those of all its tries, and of the pauses between them."""

    name: str
    seconds: float
    summary: str


@dataclass(frozen=True, slots=True)
class OutputReport:
    """One output as it lies in its store, verified.

    Attributes:
        name: The channel.
        url: Where it is.
        num_files: How many files are there.
        size_bytes: Their size.
        left_out: What the script left that could not be uploaded, and why; of a training that was
            broken off, since it is an error of any other.
        engine: What brought it there: curl, s3fs, fsspec or local.
        num_read_back: Of how many files every byte was read again; what the store tells of the
            others follows from what was sent.
        claimed: What kept other runs from writing to the same place.
        num_by_checksum: Of how many of the others that is a checksum, and not the ETag.
    """

    name: str
    url: str
    num_files: int
    size_bytes: int
    left_out: tuple[str, ...] = ()
    engine: str = ""
    num_read_back: int = 0
    claimed: Exclusion | None = None
    num_by_checksum: int = 0

    def __str__(self) -> str:
        """Return what lies there, and how it is known, in one line."""
        by = f" ({self.engine})" if self.engine else ""
        size = f"{counted(self.num_files, 'file')}, {format_size(self.size_bytes)}{by}"
        claimed = f", claimed {self.claimed}" if self.claimed == "by looking" else ""
        return f"{self.name}: {size}, {self._proof}{claimed}"

    @property
    def _proof(self) -> str:
        ways = {
            "etag": self.num_files - self.num_by_checksum - self.num_read_back,
            "checksum": self.num_by_checksum,
            "reading back": self.num_read_back,
        }
        first, *others = [way for way, num_files in ways.items() if num_files] or ["etag"]
        more = [f", {counted(ways[way], 'file')} by {way}" for way in others]
        return f"verified by {first}{''.join(more)}"


@dataclass(frozen=True, slots=True)
class AttemptReport:
    """One attempt to train.

    Attributes:
        number: Counted from 0.
        seconds: How long it trained; None if its process did not live to say so.
        outcome: How it ended, in one line.
        resumed_from: Step of the checkpoint that it went on from.
        logs: Folder of its logs on the machine that trained; empty if that is another one, and
            nothing else is known of the attempt.
    """

    number: int
    seconds: float | None
    outcome: str
    resumed_from: int | None
    logs: str


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run did.

    Attributes:
        job: Name of the job.
        run_id: Id of the run, which is that of its Prefect flow run.
        state: ``Completed``, ``AutoStopped``, ``TargetReached``, ``Failed``, ``Cancelled``, or
            ``Crashed`` of a run whose flow process was killed.
        stages: The stages that ran, in order; of one that failed the summary says so.
        outputs: The outputs that are in their stores, verified.
        logs: Folder of the ranks' logs on the machine that trained.
        command: What every rank executed, as typed in a terminal.
        error: Why the run failed; absent if it did not.
        store: Name of the store that the urls of the job belong to.
        output_urls: Where each output of the job goes, by channel: also those that are not there.
        attempts: The attempts to train, in order.
        failure: What failed first, if it was a rank, the launcher or the supervisor.
        saved: What is in the stores when the run did not end well, or what is missing there; one
            line each.
        metrics: Last and best values of the metrics.
        notes: What a person should know beside, one line each.
        used: The saved versions that the run used, as ``KIND NAME@VERSION``.
        spent: How long it had its devices and what that cost; None: none of its stages began.
        number: Which run of its job it is, 1 for the first; None: nobody knows.
        rerun_of: Id of the run whose job it was made from; None: of none.
    """

    job: str
    run_id: str
    state: str = "Completed"
    stages: tuple[StageReport, ...] = ()
    outputs: tuple[OutputReport, ...] = ()
    logs: str | None = None
    command: str | None = None
    error: str | None = None
    store: str | None = None
    attempts: tuple[AttemptReport, ...] = ()
    failure: Failure | None = None
    saved: tuple[str, ...] = ()
    metrics: tuple[MetricSummary, ...] = ()
    notes: tuple[str, ...] = ()
    used: tuple[str, ...] = ()
    output_urls: dict[str, str] = field(default_factory=dict)
    spent: Spent | None = None
    number: int | None = None
    rerun_of: str | None = None

    def verify_commands(self) -> list[str]:
        """Return the command that proves each output again, as typed in a terminal."""
        store = ["--store", self.store] if self.store else []
        words = ["python", "-m", "flows", "verify"]
        return [shlex.join([*words, output.url, *store]) for output in self.outputs]


def report_markdown(report: RunReport, job: TrainingJob | None) -> str:
    """Return the report as a page: what ran, where the outputs are, how long each stage took.

    Args:
        report: What the run did.
        job: Its job; None if it could not be read.
    """
    lines = [f"# {report.job}: {report.state}", ""]
    if job and job.description:
        lines += [job.description, ""]
    if report.failure:
        lines += [card_markdown(report.failure), ""]
    ran = _table(("what", "value"), _facts(report, job))
    if report.command:
        ran += ["", "Every rank executed:", "", *_code_block(report.command)]
    sections = {
        "Why": _code_block(report.error) if report.error and not report.failure else [],
        "Saved": [f"- {line}" for line in report.saved],
        "Notes": [f"- {line}" for line in report.notes],
        "What ran": ran,
        "Outputs": _outputs(report) if report.outputs else [],
        "Metrics": _table(TABLE_HEAD, table_rows(report.metrics)) if report.metrics else [],
        "Attempts": _attempts(report) if report.attempts else [],
        "Stages": _stages(report) if report.stages else [],
    }
    for title, content in sections.items():
        if content:
            lines += [f"## {title}", "", *content, ""]
    return "\n".join(lines)


def _outputs(report: RunReport) -> list[str]:
    rows = [
        (o.name, f"`{o.url}`", str(o.num_files), format_size(o.size_bytes)) for o in report.outputs
    ]
    table = _table(("name", "where", "files", "size"), rows)
    return [*table, "", "Prove them again:", "", *_code_block("\n".join(report.verify_commands()))]


def _start_of(attempt: AttemptReport) -> str:
    if attempt.resumed_from is not None:
        return f"step {attempt.resumed_from}"
    return "the start" if attempt.logs else "unknown"


def _attempts(report: RunReport) -> list[str]:
    rows = [
        (
            str(attempt.number + 1),
            _start_of(attempt),
            "unknown" if attempt.seconds is None else f"{attempt.seconds:.1f} s",
            attempt.outcome,
            f"`{attempt.logs}`" if attempt.logs else "-",
        )
        for attempt in report.attempts
    ]
    return _table(("attempt", "from", "time", "how it ended", "logs"), rows)


def _stages(report: RunReport) -> list[str]:
    spent, total_s = report.spent, sum(stage.seconds for stage in report.stages)
    rows = [(stage.name, f"{stage.seconds:.1f} s", stage.summary) for stage in report.stages]
    rows.append(("together", f"{total_s:.1f} s", ""))
    if spent is None or spent.cost is None:
        return _table(("stage", "time", "what it did"), rows)
    costs = [amount(spent.by_stage.get(stage.name, 0.0)) for stage in report.stages]
    priced = [
        (name, time, cost, summary)
        for (name, time, summary), cost in zip(rows, [*costs, amount(spent.cost)], strict=True)
    ]
    return _table(("stage", "time", "cost", "what it did"), priced)


def _facts(report: RunReport, job: TrainingJob | None) -> list[tuple[str, str]]:
    facts = _facts_of_job(job) if job else []
    if report.used:
        facts.append(("saved versions", ", ".join(f"`{version}`" for version in report.used)))
    if report.spent:
        facts.append(("took", str(report.spent)))
    if report.logs:
        facts.append(("logs on the machine", f"`{report.logs}`"))
    if report.number:
        facts.append(("version", f"run {report.number:,} of the job {report.job}"))
    if report.rerun_of:
        facts.append(("rerun of", f"`{report.rerun_of}`"))
    return [*facts, ("run", f"`{report.run_id}`")]


def _facts_of_job(job: TrainingJob) -> list[tuple[str, str]]:
    algorithm = job.algorithm
    program = algorithm.boot_file if isinstance(algorithm, ScriptAlgorithm) else algorithm.command
    ref = f" at {algorithm.code.ref}" if algorithm.code.ref else ""
    return [
        ("code", f"`{algorithm.code.url}`{ref}, `{program}`"),
        ("ranks", f"{job.world_size} by {job.launcher} on {job.resources.device}"),
        *([("flavor", str(flavor))] if (flavor := job.resources.flavor) else []),
        *([("costs", costs)] if (costs := cost_text(job)) else []),
        *((f"input {channel.name}", f"`{channel.url}`") for channel in job.inputs),
    ]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    cells = [tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    return [_row(head), _row(("---",) * len(head)), *(_row(row) for row in cells)]


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _code_block(text: str) -> list[str]:
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence, text, fence]
