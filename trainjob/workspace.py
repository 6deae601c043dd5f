"""The folders of one run on the machine that trains.

::

    <root>/code/             what the code url held
           inputs/NAME/      one folder a channel, or a link to what runs share
           inputs/.staged    the fingerprints of what was staged
           outputs/NAME/     what the script writes
           checkpoints/      what the script saves to go on from; all attempts share it
           metrics/          one folder of metrics an attempt
           scratch/          what the script writes for itself, where its profile has such a folder
           private/          /tmp and the home of a job in a sandbox
           environment       a link to the Python environment with what requirements.txt asks for
           sync/             what of it was sent to stores so far
           params.json       channels and hyperparameters, types kept
           logs/attempt-0/   rank-0.log, rank-1.log, launcher.log, records/
           previous/         outputs of attempts before one that began with empty ones

The root is derived from the run's id, so that a retried task finds what the others left.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


def workspaces_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Return where runs keep their folders: ``TRAINJOB_WORKDIR`` or ``~/.trainjob/runs``.

    Args:
        env: The environment of the process whose runs they are.
    """
    chosen = env.get("TRAINJOB_WORKDIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    home = env.get("HOME")
    return (Path(home) if home else Path.home()) / ".trainjob" / "runs"


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folders of one run below `root`. Creating one touches nothing."""

    root: Path

    @classmethod
    def of_run(cls, run_id: str) -> "Workspace":
        """Return the workspace of the run with this id on this machine."""
        return cls(workspaces_dir() / run_id)

    @property
    def code(self) -> Path:
        """The folder that holds the code."""
        return self.root / "code"

    @property
    def params_file(self) -> Path:
        """The JSON file with channels and hyperparameters."""
        return self.root / "params.json"

    @property
    def checkpoints(self) -> Path:
        """The folder that holds what the script saves to go on from."""
        return self.root / "checkpoints"

    @property
    def scratch(self) -> Path:
        """The folder that the script may fill with what nobody keeps."""
        return self.root / "scratch"

    @property
    def private(self) -> Path:
        """The folder that holds /tmp and the home of a job in a sandbox."""
        return self.root / "private"

    @property
    def environment(self) -> Path:
        """The link to the Python environment of a job whose requirements are installed."""
        return self.root / "environment"

    @property
    def logs(self) -> Path:
        """The folder that holds one folder of logs an attempt."""
        return self.root / "logs"

    def input_dir(self, name: str) -> Path:
        """Return the folder of the input channel `name`."""
        return self.root / "inputs" / name

    @property
    def inputs_file(self) -> Path:
        """The JSON file with the fingerprint of every channel that was staged."""
        return self.root / "inputs" / ".staged"

    @property
    def outputs(self) -> Path:
        """The folder that holds one folder an output channel."""
        return self.root / "outputs"

    @property
    def previous(self) -> Path:
        """The folder that holds one folder of outputs an attempt that was set aside."""
        return self.root / "previous"

    def previous_outputs(self, attempt: int) -> Path:
        """Return where outputs of an earlier attempt are set aside."""
        return self.previous / f"attempt-{attempt}"

    def earlier_output_dirs(self, name: str) -> list[Path]:
        """Return what earlier attempts wrote for an output channel, the latest attempt first."""
        folders = sorted(self.previous.glob("attempt-*"), key=_number_of, reverse=True)
        return [folder / name for folder in folders if (folder / name).is_dir()]

    def output_dir(self, name: str) -> Path:
        """Return the folder that the script writes for the output channel `name`."""
        return self.outputs / name

    def attempt_logs(self, attempt: int) -> Path:
        """Return the folder of logs of an attempt, counted from 0."""
        return self.logs / f"attempt-{attempt}"

    def metrics_dir(self, attempt: int) -> Path:
        """Return the folder for the metrics of an attempt, counted from 0."""
        return self.root / "metrics" / f"attempt-{attempt}"

    def journal(self, name: str) -> Path:
        """Return the file that notes what of `name` was sent to its store."""
        return self.root / "sync" / f"{name}.json"

    @property
    def last_attempt(self) -> int:
        """The number of the last attempt, counted from 0; -1 if there was none."""
        return max(map(_number_of, self.logs.glob("attempt-*")), default=-1)

    def next_attempt(self) -> int:
        """Return the number of the attempt that would come next, counted from 0."""
        return self.last_attempt + 1

    def trained_s(self, since: int = 0) -> float:
        """Return for how many seconds the attempts on this machine trained, killed ones too.

        Args:
            since: The first attempt that counts.
        """
        total_s = 0.0
        for folder in self.logs.glob("attempt-*"):
            if _number_of(folder) < since:
                continue
            begun = folder / "records" / "order.json"
            if begun.exists():
                last = max(path.stat().st_mtime for path in folder.rglob("*"))
                total_s += max(0.0, last - begun.stat().st_mtime)
        return total_s

    def has_checkpoints(self) -> bool:
        """Tell whether the script has saved anything that an attempt may go on from."""
        folder = self.checkpoints
        return folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir())

    def start_attempt(
        self, output_names: tuple[str, ...], *, keeps_outputs: bool = False, at_least: int = 0
    ) -> int:
        """Make the folders of a new attempt and return its number.

        Outputs of an attempt before it, on whatever machine, are moved to ``previous/attempt-N``: a
        file that only the earlier attempt wrote must not be uploaded as a result of this one, nor
        be lost.

        Args:
            output_names: The output channels.
            keeps_outputs: Leave outputs where they are, since the attempt goes on from a checkpoint
                and writes only what is new.
            at_least: The lowest number, for a run whose earlier attempts were on another machine.
        """
        attempt = max(self.next_attempt(), at_least)
        if not keeps_outputs and self.outputs.exists():
            self._set_outputs_aside(max(attempt - 1, 0))
        for name in output_names:
            self.output_dir(name).mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.attempt_logs(attempt).mkdir(parents=True)
        return attempt

    def _set_outputs_aside(self, number: int) -> None:
        """Move the outputs to the first free place from that of attempt `number` on.

        It is taken if this was begun before, or if outputs came from another machine.
        """
        while (previous := self.previous_outputs(number)).exists():
            number += 1
        previous.parent.mkdir(parents=True, exist_ok=True)
        self.outputs.rename(previous)

    def drop_copies(self, *, keeps_checkpoints: bool) -> None:
        """Remove what a run that ended well needs no more. Logs and parameters stay.

        Args:
            keeps_checkpoints: Leave the checkpoints, since they are nowhere else and the training
                could go on from them, and the journal that tells what of them was sent.
        """
        dropped = self.root / ".dropped"
        with suppress(OSError):  # what is half removed must not be taken for the outputs
            self.outputs.rename(dropped)
        names = ["inputs", "code", dropped.name, "metrics", "scratch", "private"]
        if not keeps_checkpoints:
            names += ["checkpoints", "sync"]
        for name in names:
            shutil.rmtree(self.root / name, ignore_errors=True)
        for journal in (self.root / "sync").glob("*"):
            if journal != self.journal("checkpoints"):
                journal.unlink(missing_ok=True)
        with suppress(OSError):  # a script may have put something else there
            self.environment.unlink()


def _number_of(attempt: Path) -> int:
    return int(attempt.name.removeprefix("attempt-"))
