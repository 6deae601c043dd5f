"""The errors of trainjob: one tree, each class saying once whether a retry can help.

::

    TrainjobError                 every error that we raise on purpose
    ├── JobError                  the job is wrong as written: fix the file (exit code 2)
    ├── StoreError                a store did not do what was asked
    │   ├── StoreUnavailable      network, time-out, 5xx                          retryable
    │   ├── StoreDenied           credentials or permissions
    │   ├── StoreNotFound         bucket, folder or object is not there
    │   ├── TreeChanged           the source changed while it was copied          retryable
    │   ├── CorruptData           bytes are not the bytes that were promised      retryable
    │   ├── UnsafeKey             a key that cannot be a file below the target
    │   ├── OutputNotEmpty        the output prefix holds something not of this run
    │   ├── CheckpointsOfAnother  the checkpoint folder belongs to another job, run or program
    │   └── OutputEmpty           the script wrote nothing to a declared output
    ├── SourceError               the code cannot be had as asked
    │   └── SourceUnavailable     its host does not answer                        retryable
    ├── RequirementsFailed        what requirements.txt names cannot be installed
    │   └── RequirementsUnavailable  the place of the packages does not answer       retryable
    ├── RegistryError             a saved version is not there (trainjob.registry.records)
    ├── RunCancelled              the run was being cancelled when its process was killed
    ├── RunLost                   the process of the run was killed for good
    ├── LaunchError               the training could not be started
    │   └── StartFailed           by a launcher or program (trainjob.launch.failure)
    ├── TrainingFailed            the training began and failed (trainjob.launch.failure)
    │   ├── RankFailed            a rank did, first of all
    │   ├── TrainingStalled       nothing was seen of it for too long
    │   └── RanksAbandoned        launcher, supervisor or flow process died
    └── CheckpointError           a checkpoint is none (trainjob.checkpoint_folder)
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

Level = Literal["error", "warning"]
_NAMED_BY_JOB = re.compile(r"^(hyperparameters|env|secrets)\..*", re.DOTALL)


class TrainjobError(Exception):
    """An error with a message for a person: what was asked, what was found, what to do."""

    retryable: ClassVar[bool] = False
    """Whether doing the same again may succeed. Tasks retry on this alone."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a job.

    Attributes:
        field: Where it is, as a dotted path into the job file (``inputs[0].url``).
        asked: What the job asks for, quoted.
        found: What was found instead.
        do: What the person can do about it.
        may_pass: Whether it may be gone when asked again, as a store that does not answer.
        id: The rule that is broken, the same for all jobs; not given: the field without numbers and
            names that a job chooses (``inputs-url``, ``hyperparameters``).
        level: ``error``: a run would fail or is refused. ``warning``: it may be what is wanted, or
            may not be so, and keeps no run from starting.
    """

    field: str
    asked: str
    found: str
    do: str
    may_pass: bool = False
    id: str = ""
    level: Level = "error"

    def __post_init__(self) -> None:
        """Name the rule after its field, if it has no name of its own."""
        if not self.id:
            known = _NAMED_BY_JOB.sub(r"\1", re.sub(r"\[\d+\]", "", self.field))
            object.__setattr__(self, "id", known.replace(".", "-").replace("_", "-").lower())

    def __str__(self) -> str:
        """Return the problem as one line: ``field: asked, found, do``."""
        return f"{self.field}: asked for {self.asked}, found {self.found}; {self.do}"


class JobError(TrainjobError, ValueError):
    """The job is wrong as written. Holds all its problems, not only the first."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = len(self.problems)
        noun = "problem" if count == 1 else "problems"
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{source}: {count} {noun}\n{lines}")

    def __reduce__(self) -> tuple[type["JobError"], tuple[str, tuple[Problem, ...]]]:
        """Rebuild from the arguments, since the message is not one of them."""
        return type(self), (self.source, self.problems)


class StoreError(TrainjobError):
    """A store did not do what was asked."""


class StoreUnavailable(StoreError):
    """The store could not be reached, timed out or answered with a server error."""

    retryable = True


class StoreDenied(StoreError):
    """The store refused the credentials, or they do not allow the operation."""


class StoreNotFound(StoreError):
    """The bucket, folder or object is not there."""


class TreeChanged(StoreError):
    """The source changed while it was copied, so the copy would mix two versions."""

    retryable = True


class CorruptData(StoreError):
    """The bytes that arrived are not the bytes that were promised."""

    retryable = True


class UnsafeKey(StoreError):
    """A key that cannot become a file below the target folder."""


class OutputNotEmpty(StoreError):
    """The output prefix holds something that this run did not write."""


class CheckpointsOfAnother(StoreError):
    """The checkpoint folder belongs to another job, run or program."""


class OutputEmpty(StoreError):
    """The script wrote nothing to an output that the job declares."""


class SourceError(TrainjobError):
    """The code cannot be had as the job asks for it."""


class SourceUnavailable(SourceError):
    """The host of the code does not answer."""

    retryable = True


class RequirementsFailed(TrainjobError):
    """What the requirements of the code name cannot be installed."""


class RequirementsUnavailable(RequirementsFailed):
    """The place of the packages does not answer."""

    retryable = True


class LaunchError(TrainjobError):
    """The training could not be started: launcher missing, MPI mismatch, no device."""


class RunCancelled(TrainjobError):
    """The run was being cancelled when its process was killed."""


class RunLost(TrainjobError):
    """The process of the run was killed, and its job allows no other attempt."""


class TrainingFailed(TrainjobError):
    """A rank failed. The message is what a person needs to see, and nothing else."""
