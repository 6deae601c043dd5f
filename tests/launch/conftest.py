"""What tests of the launch share: launches of small scripts, and watchers of what they say."""

import itertools
import json
import textwrap
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import processes
from trainjob.events import Event, RankOutput, StepReported, listening
from trainjob.launch.launch import Launch
from trainjob.launch.training import Control, TrainingResult, run_training

MakeLaunch = Callable[..., Launch]


@pytest.fixture
def make_launch(tmp_path: Path) -> MakeLaunch:
    """Return a function from the text of a script, or a command, to a launch of it."""
    numbers = itertools.count()

    def make(
        script: str | None = None,
        *args: str,
        command: tuple[str, ...] | None = None,
        world_size: int = 1,
        launcher: str | None = None,
        **changes: Any,
    ) -> Launch:
        root = tmp_path / f"launch-{next(numbers)}"
        code_dir = root / "code"
        code_dir.mkdir(parents=True)
        if script is not None:
            (code_dir / "train.py").write_text(textwrap.dedent(script))
        launch = Launch(
            run_id=f"test-{uuid.uuid4()}",
            launcher=launcher or ("single" if world_size == 1 else "torchrun"),  # type: ignore[arg-type]
            world_size=world_size,
            program=command or ("train.py", *args),
            is_script=command is None,
            code_dir=code_dir,
            log_dir=root / "logs",
            env={},
            device="cpu",
            cores=None,
            auto_stop_s=None,
            grace_s=5.0,
        )
        return replace(launch, **changes)

    return make


class Watched:
    """A training that ran while its events were kept."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.result: TrainingResult | None = None

    @property
    def steps(self) -> list[StepReported]:
        return [event for event in self.events if isinstance(event, StepReported)]

    def lines(self, rank: int | None = 0) -> list[str]:
        outputs = [event for event in self.events if isinstance(event, RankOutput)]
        return [line for output in outputs if output.rank == rank for line in output.lines]

    def json(self, rank: int = 0) -> Any:
        return json.loads(self.lines(rank)[-1])


@pytest.fixture
def watch() -> Callable[[Launch], Watched]:
    """Return a function that runs a launch to a good end and returns what it emitted."""

    def run(launch: Launch) -> Watched:
        watched = Watched()
        with listening(watched.events.append):
            watched.result = run_training(launch)
        return watched

    return run


@pytest.fixture
def run_until() -> Callable[..., TrainingResult]:
    """Return a function that runs a launch and acts once when a rank has written a line."""

    def run(
        launch: Launch, line: str, act: Callable[[], object], control: Control | None = None
    ) -> TrainingResult:
        waiting = [act]

        def listener(event: Event) -> None:
            if isinstance(event, RankOutput) and line in event.lines and waiting:
                waiting.pop()()

        with listening(listener):
            return run_training(launch, control)

    return run


def read_record(launch: Launch, name: str) -> Any:
    """Return the content of a record, such as ``exit-0``."""
    return json.loads((launch.records_dir / f"{name}.json").read_text())


def marked_processes(launch: Launch) -> dict[int, str]:
    """Return the command lines of all living processes of a launch by their pid."""
    return processes.marked_processes(launch.run_id)
