"""What a registry holds: versions of algorithms, datasets and models, and how they are named.

A version never changes once it is saved; a change is a new version. `trainjob.registry.folder`
keeps them, `trainjob.registry.register` makes them.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field

from trainjob.algorithm import CommandAlgorithm, ScriptAlgorithm
from trainjob.declared_channels import DataFormat, DeclaredInput, DeclaredOutput, Labelling
from trainjob.errors import Problem, TrainjobError
from trainjob.registry.contents import Contents
from trainjob.spec import ContentFingerprint, Line, Name, Spec

Kind = Literal["algorithm", "dataset", "model"]
DATA_KINDS: tuple[Literal["dataset", "model"], ...] = ("dataset", "model")
"""What an input channel may name."""

_REFERENCE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_-]{0,63})(?:@(latest|[1-9][0-9]{0,8}))?")


def _writable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("write a text of characters that UTF-8 can write") from error
    return text


Text = Annotated[str, AfterValidator(_writable)]


class RegistryError(TrainjobError):
    """The registry does not hold what was asked for.

    Args:
        asked: What was asked for, quoted.
        found: What was found instead.
        do: What the person can do about it.
    """

    def __init__(self, asked: str, found: str, do: str) -> None:
        super().__init__(asked, found, do)

    def __str__(self) -> str:
        """Return the message."""
        asked, found, do = self.args
        return f"asked for {asked}, found {found}; {do}"

    def problem(self, field: str) -> Problem:
        """Return the problem of a job that names it at `field`."""
        return Problem(field, *self.args)


@dataclass(frozen=True, slots=True)
class Reference:
    """A saved thing as people name it: ``digits``, ``digits@latest`` or ``digits@3``.

    Attributes:
        name: Its name.
        version: Counted from 1; None for the latest.
    """

    name: str
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference.

        Raises:
            RegistryError: If the text is none.
        """
        match = _REFERENCE.fullmatch(text)
        if match is None:
            do = "a name has 1 to 64 letters, digits, - and _, and does not start with -"
            raise RegistryError("NAME, NAME@3 or NAME@latest", repr(text), do)
        version = match[2]
        return cls(match[1], None if version in (None, "latest") else int(version))

    def __str__(self) -> str:
        """Return the reference as people write it."""
        return f"{self.name}@{self.version or 'latest'}"


class Record(Spec):
    """What all versions have in common."""

    kind: Kind
    """What it is a version of."""

    name: Name
    """Its name."""

    version: int = Field(ge=1)
    """Counted from 1; the number of a version that was deleted is not given again."""

    created: Line
    """When it was saved, UTC, ISO 8601."""

    description: Text = ""
    """What it is."""

    store: Name | None = None
    """Name of the ObjectStore block that its `s3://` url was read with; absent: the AWS_*
    environment, or no such url."""

    def __str__(self) -> str:
        """Return how people name it."""
        return f"{self.name}@{self.version}"

    @property
    def made_from(self) -> tuple[str, ...]:
        """Other versions that it was made from, as ``KIND NAME@VERSION``."""
        return ()


class SavedAlgorithm(Record):
    """A version of an algorithm: its code was fetched and what it starts was found in it."""

    kind: Literal["algorithm"] = "algorithm"
    """What it is a version of."""

    definition: Annotated[ScriptAlgorithm | CommandAlgorithm, Field(discriminator="kind")]
    """The `algorithm` of a job file with the one version of its code: with the fingerprint of the
    files and, of a git repository, the commit."""

    inputs: list[DeclaredInput] | None = None
    """What it reads; absent: not declared, so that jobs may give any inputs."""

    outputs: list[DeclaredOutput] | None = None
    """What it writes; absent: not declared, so that jobs may give any outputs."""

    num_entries: int
    """Files and folders of the code."""

    size_bytes: int
    """Size of the code."""

    @property
    def in_a_job(self) -> ScriptAlgorithm | CommandAlgorithm:
        """What stands in a job that uses it: its definition, with all that a run needs of it."""
        declared = {
            "inputs": None if self.inputs is None else tuple(self.inputs),
            "outputs": None if self.outputs is None else tuple(self.outputs),
        }
        return self.definition.model_copy(update={"registered": str(self), **declared})


class _SavedData(Record):
    """A version of data: where it is, and its fingerprint."""

    url: Line
    """A folder or an archive; see `inputs[].url` of a job."""

    fingerprint: ContentFingerprint
    """Over paths, sizes and digests of the files, of an archive those in it."""

    is_read: bool
    """Whether every byte was read to find the fingerprint; else it is what `--expect` said."""

    num_files: int | None = None
    """Its files; absent if they were not read."""

    size_bytes: int | None = None
    """Their size; absent if they were not read."""

    unpack: Literal["auto", "always", "never"] = "auto"
    """Whether one archive is unpacked; see `inputs[].unpack` of a job."""

    archive_names: str = "utf-8"
    """How names in an archive are written; see `inputs[].archive_names` of a job."""

    contents: Contents | None = None
    """What is in it; absent if it was not read."""


class SavedDataset(_SavedData):
    """A version of a dataset."""

    kind: Literal["dataset"] = "dataset"
    """What it is a version of."""

    labelling: Labelling | None = None
    """Its labelling type, such as `image-classification`."""

    format: DataFormat | None = None
    """How its files are written."""

    is_split: bool | None = None
    """Whether it is split into training and validation data; absent: not said."""


class RunOrigin(Spec):
    """The run that made a model, as the receipt beside it says."""

    run_id: Line
    """Its id."""

    job: Line | None = None
    """Name of its job."""

    state: Line
    """How the training ended."""

    used: list[Line] = Field(default=[])
    """The saved versions that it used, as `KIND NAME@VERSION`."""


class SavedModel(_SavedData):
    """A version of a model."""

    kind: Literal["model"] = "model"
    """What it is a version of."""

    metrics: dict[str, float] = Field(default={})
    """Last values of the metrics of the run that made it."""

    run: RunOrigin | None = None
    """The run that made it; absent: it was imported."""

    @property
    def made_from(self) -> tuple[str, ...]:
        """Return the saved versions that its run used."""
        return tuple(self.run.used) if self.run else ()
