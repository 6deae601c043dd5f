"""The story of a run in a terminal: live bars when it is one, plain lines when not."""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from rich.console import COLOR_SYSTEMS, Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment, Segments
from rich.style import Style
from rich.table import Column

from trainjob.copy_status import CopyStatus
from trainjob.events import (
    AttemptEnded,
    AttemptStarted,
    Event,
    MetricReported,
    RankOutput,
    RunEnded,
    StageFailed,
    StageFinished,
    StageStarted,
    StepReported,
    Transferred,
)
from trainjob.failure_card import card_text
from trainjob.job import TrainingJob
from trainjob.report import RunReport
from trainjob.training_status import TrainingStatus

_STAGES = ("stage_inputs", "fetch_code", "inject_hyperparameters", "train", "upload_outputs")
_STAGES_WITH_REQUIREMENTS = (*_STAGES[:2], "install_requirements", *_STAGES[2:])
_PLAIN_WIDTH = 120  # of a file or pipe, which has none
_PLAIN_INTERVAL_S = 5.0
# All escape sequences but colors (ECMA-48 SGR), and all control characters but tab and escape.
_CONTROL = re.compile(r"\x1b(?!\[[0-9;]*m)(?:\[[0-9;?]*[@-~])?|[\x00-\x08\x0a-\x1a\x1c-\x1f\x7f]")
_MAX_METRICS = 5  # that one line has room for
_STYLES = {
    "Completed": "bold green",
    "AutoStopped": "bold green",
    "TargetReached": "bold green",
    "Cancelled": "bold yellow",
}
_RANK_COLORS = ("cyan", "magenta", "green", "yellow", "blue")


class Terminal:
    """Tells a run's events to a person. Safe to call from several threads.

    Args:
        console: Where to write.
        only_rank: Show the output of this rank alone; None shows all.
        clock: Seconds that only grow.

    Attributes:
        report: How the run ended, once it has.
    """

    def __init__(
        self,
        console: Console,
        only_rank: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._is_terminal = console.is_terminal  # looks through the environment at every call
        self._only_rank = only_rank
        self._clock = clock
        self._lock = threading.Lock()
        self._stages: tuple[str, ...] = _STAGES
        self._bars: dict[str, TaskID] = {}
        self._copies = CopyStatus(clock)
        self._last_plain_line = clock()
        self._training = TrainingStatus(clock=clock)
        self.report: RunReport | None = None
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeRemainingColumn(compact=True),
            # In a narrow terminal, this is cut off and everything else stays.
            TextColumn("{task.fields[detail]}", table_column=Column(ratio=1, no_wrap=True)),
            expand=True,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    @contextmanager
    def live(self) -> Iterator["Terminal"]:
        """Show live bars until the block ends."""
        with self._progress:
            yield self

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line as it is."""
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def waiting(self, text: str) -> None:
        """Show what is being waited for; it goes when the first stage begins."""
        if self._is_terminal:
            self._bar("waiting", text, total=None, detail="")
        else:
            self.say(text)

    def introduce(self, job: TrainingJob) -> None:
        """Print what is going to run."""
        if job.environment.requirements:
            self._stages = _STAGES_WITH_REQUIREMENTS
        self._training.num_attempts = 1 + job.limits.auto_restart
        self._console.print(f"[bold]{escape(job.name)}[/]  {escape(job.description)}".rstrip())
        self.say(f"  code   {job.algorithm.code.url}")
        self.say(f"  ranks  {job.world_size} by {job.launcher} on {job.resources.device}")
        if job.saved_versions:
            self.say(f"  uses   {', '.join(job.saved_versions)}")

    def conclude(self, report: RunReport, seconds: float) -> None:
        """Print how the run ended, why, and where its results are."""
        style = _STYLES.get(report.state, "bold red")
        self.say(f"{report.state} after {seconds:.1f} s", style=style)
        if report.failure:
            width = self._console.width if self._is_terminal else _PLAIN_WIDTH
            self.say(card_text(report.failure, width))
        elif report.error:
            self._quote(report.error)
        for output in report.outputs:
            self.say(f"  {output.name}  {output.url}")
        for command in report.verify_commands():
            self.say(f"  prove it  {command}")
        for line in report.saved:
            self.say(f"  {line}")
        for line in report.notes:
            self.say(f"  note  {line}")
        if report.spent and report.spent.cost is not None:
            self.say(f"  cost  {report.spent}")
        if report.logs:
            self.say(f"  logs  {report.logs}")
        if report.run_id:
            self.say(f"  run   {report.run_id}")

    def __call__(self, event: Event) -> None:
        """Tell one event. A terminal that is gone is no reason to end a run."""
        with self._lock, suppress(OSError):
            match event:
                case StageStarted():
                    self._stage_started(event)
                case StageFinished():
                    self._end_bars()
                    summary = escape(event.summary)
                    self._stage_line(event.stage, f"{summary} [dim]({event.seconds:.1f} s)[/]")
                case StageFailed():
                    self._stage_failed(event)
                case Transferred():
                    self._transferred(event)
                case RankOutput():
                    self._rank_output(event)
                case StepReported() | MetricReported():
                    self._training.note(event)
                    self._show_training()
                case AttemptStarted() | AttemptEnded():
                    self._training.note(event)
                    self._attempt_changed(event)
                case RunEnded():
                    self.report = event.report  # from now on, no signal interrupts
                    self._end_bars()

    def _quote(self, text: str) -> None:
        """Print lines that may hold what a rank wrote."""
        self.say("\n".join(_harmless(line) for line in text.split("\n")))

    def _stage_started(self, event: StageStarted) -> None:
        self._end_bars()
        self._copies = CopyStatus(self._clock)
        self._last_plain_line = self._clock()
        self._bar(event.stage, event.stage, total=None, detail="")
        if event.stage == "train" or event.attempt > 1:
            again = f"attempt {event.attempt}" if event.attempt > 1 else "starting"
            self._stage_line(event.stage, again)

    def _stage_failed(self, event: StageFailed) -> None:
        self._end_bars()
        if not event.will_retry:
            self._stage_line(event.stage, f"[red]failed[/] [dim]({event.seconds:.1f} s)[/]")
            return
        first_line = escape(str(event.error).partition("\n")[0])
        self._stage_line(event.stage, f"[yellow]will be tried again:[/] {first_line}")

    def _stage_line(self, stage: str, markup: str) -> None:
        number = self._stages.index(stage) + 1
        head = f"[dim][{number}/{len(self._stages)}][/dim] [bold]{stage}[/]"
        self._console.print(f"{head}  {markup}", highlight=False, soft_wrap=True)

    def _transferred(self, event: Transferred) -> None:
        self._copies.note(event)
        # A bar has a column of its own for the time that is left.
        detail = self._copies.text(event, with_eta=not self._is_terminal)
        self._advance(event.label, event.size_bytes, event.total_bytes, detail)

    def _attempt_changed(self, event: AttemptStarted | AttemptEnded) -> None:
        if isinstance(event, AttemptEnded):
            if event.will_restart:
                self._end_bars()
                self._bar("train", "train", total=None, detail="starting again")
            return
        # A bar of its own: what is left of an earlier start says nothing of this one's speed.
        self._end_bars()
        self._bar("train", "train", total=None, detail="")
        text = self._start_text(event)
        if text:
            self._stage_line("train", text)

    def _start_text(self, event: AttemptStarted) -> str:
        step, training = event.resumed_from, self._training
        if event.attempt == 0:
            return "" if step is None else f"going on from step {step}"
        own = "with what the script has saved" if event.has_files else "from the beginning"
        where = own if step is None else f"from step {step}"
        cause = f"[yellow]{escape(_harmless(training.failed))}[/]; " if training.failed else ""
        return f"{training.attempt_text}: {cause}restarting {where}"

    def _show_training(self) -> None:
        if self._waits_for_plain_line():
            return
        training = self._training
        step = "" if training.step is None else f"step {training.step}"
        total = f"/{training.total}" if step and training.total else ""
        epoch = "" if training.epoch is None else f"epoch {training.epoch}"
        shown = list(training.metrics.items())[:_MAX_METRICS]
        metrics = [f"{name} {value:.4g}" for name, value in shown]
        # The bar has a column for the time that is left.
        eta = f"ETA {training.eta}" if training.eta and not self._is_terminal else ""
        detail = "  ".join(part for part in (step + total, epoch, *metrics, eta) if part)
        self._advance("train", training.step or 0, training.total, detail)

    def _advance(self, label: str, completed: int, total: int | None, detail: str) -> None:
        if self._is_terminal:
            bar = self._bar(label, label, total=total, detail=escape(detail))
            self._progress.update(bar, completed=completed)
        elif not self._waits_for_plain_line():
            self._last_plain_line = self._clock()
            self.say(f"      {label}  {detail}")

    def _waits_for_plain_line(self) -> bool:
        """Tell whether there are no bars and the last line of their kind is not long ago."""
        waits = self._clock() - self._last_plain_line < _PLAIN_INTERVAL_S
        return waits and not self._is_terminal

    def _rank_output(self, event: RankOutput) -> None:
        if event.rank is not None and self._only_rank not in (None, event.rank):
            return
        source = "launcher" if event.rank is None else f"rank {event.rank}"
        color = Style(color=_RANK_COLORS[(event.rank or 0) % len(_RANK_COLORS)])
        colors = COLOR_SYSTEMS.get(self._console.color_system or "")
        head = f"      {color.render(f'{source} |', color_system=colors)} "
        lines: Iterable[str] = event.lines
        if not "".join(lines).isprintable():
            lines = (_harmless(line).expandtabs() for line in lines)
        # As one piece: markup or a piece a line took a twentieth of a core at 2,000 lines/s.
        text = "".join([f"{head}{line}\n" for line in lines])
        self._console.print(Segments([Segment(text)]), end="", soft_wrap=True)

    def _bar(self, key: str, label: str, total: int | None, detail: str) -> TaskID:
        if key not in self._bars:
            self._bars[key] = self._progress.add_task(label, total=total, detail=detail)
        self._progress.update(self._bars[key], total=total, detail=detail)
        return self._bars[key]

    def _end_bars(self) -> None:
        while self._bars:  # forgotten first: an interruption leaves no name of a bar that is gone
            self._progress.remove_task(self._bars.popitem()[1])


class WarningLines(logging.Handler):
    """Shows warnings of the core, such as a store that is away, as lines of the story."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.WARNING)
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """Show one warning. A terminal that is gone is no reason to end a run."""
        with suppress(OSError):
            self._terminal.say(f"      warning: {_harmless(record.getMessage())}", style="yellow")


def _harmless(line: str) -> str:
    """Return what a terminal would show last of a line, colors kept, without any other control."""
    shown = line.rstrip("\r").rpartition("\r")[2]
    return _CONTROL.sub("", shown)
