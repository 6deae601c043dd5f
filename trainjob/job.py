"""The training job: the one model behind job files, the UI form, Python and deployments.

Every key here does something; keys of later machinery are added with it. `TrainingJob.load` reads
a file and reports all mistakes at once. Whether the named things exist is asked by
`trainjob.check`, not here.
"""

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from trainjob.errors import JobError
from trainjob.job_problems import ProblemsFound, problems_of
from trainjob.job_rules import RUN_ID, problems_across_fields
from trainjob.jobfile import read_job_file
from trainjob.parameters import HyperparameterValue
from trainjob.values import Duration, Flavor

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$")]
"""1 to 64 letters, digits, - and _ (ModelArts, creating an algorithm). A leading - is refused
here, which ModelArts allows: it would make ``--name`` ambiguous on a command line."""


def _one_line(text: str) -> str:
    if not text.strip() or any(c in text for c in "\n\r\0"):
        raise ValueError("write one line of text that is not blank")
    return text


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("write text without a NUL character")
    return text


def _number_as_text(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


def _limited(value: timedelta) -> timedelta:
    if not timedelta(0) < value <= timedelta(hours=72):
        raise ValueError("write a duration above 0s and at most 72h")
    return value


LimitedDuration = Annotated[Duration, AfterValidator(_limited)]
Line = Annotated[str, AfterValidator(_one_line)]
EnvValue = Annotated[
    str,
    StringConstraints(max_length=4096),
    BeforeValidator(_number_as_text),
    AfterValidator(_no_nul),
]


class _Spec(BaseModel):
    """What all parts of a job share: frozen, no unknown keys, field docstrings as help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class Code(_Spec):
    """Where the code is."""

    url: Line
    """A folder, `s3://bucket/prefix/`, an archive (.zip, .tar, .tar.gz, .tgz) at either, or a git
    repository (`git+https://…`, `git+ssh://…`, `git+file://…`). Without a scheme: a path relative
    to the job file, or in a deployment to the checkout of the worker."""

    ref: Line | None = None
    """Branch, tag or commit of a git repository; absent: its default branch."""


class ScriptAlgorithm(_Spec):
    """Code whose boot file is a Python script, run on every rank."""

    model_config = ConfigDict(title="Script")  # the form's tab

    kind: Literal["script"] = "script"
    """This form of algorithm."""

    code: Code
    """Where the code is."""

    boot_file: Line
    """The one Python file that is started, relative to the code folder; ends in .py or .pyc."""


class CommandAlgorithm(_Spec):
    """Code with a startup command in any language, run on every rank."""

    model_config = ConfigDict(title="Startup command")  # the form's tab

    kind: Literal["command"] = "command"
    """This form of algorithm."""

    code: Code
    """Where the code is."""

    command: Line
    """The command as typed in a terminal, such as `sh start.sh`; it is split like a shell does, but
    no shell runs it. Channels and hyperparameters are appended as `--name value`."""


class InputChannel(_Spec):
    """A folder that the script reads."""

    name: Name
    """The script gets the folder as `--NAME PATH` and as environment variable NAME in capitals."""

    url: Line
    """A folder, or `s3://bucket/prefix/`. Without a scheme: a path relative to the
    job file, or in a deployment to the checkout of the worker."""


class OutputChannel(_Spec):
    """A folder that the script writes and that is uploaded after the training."""

    name: Name
    """The script gets the folder as `--NAME PATH` and as environment variable NAME in capitals."""

    url: Line
    """Where the files go: an empty or new folder or `s3://bucket/prefix/`. `{run_id}` in it
    becomes the id of the run. Without a scheme: a path relative to the
    job file, or in a deployment to the checkout of the worker."""


class Resources(_Spec):
    """What the job needs of a machine."""

    device: Literal["cpu", "cuda", "npu"] = "cpu"
    """Kind of device the ranks compute on. With cpu, accelerators are hidden from the script."""

    flavor: Flavor | None = None
    """Size of machine, such as `2c4g`: 2 cores and 4 GiB. A smaller machine is refused, and its
    cores are shared out to the ranks as threads. Absent: all cores of the machine."""

    nodes: Literal[1] = 1
    """Number of machines; only 1 so far."""

    processes_per_node: int = Field(default=1, ge=1, le=1024)
    """Number of ranks on the machine."""


class Limits(_Spec):
    """When a run is stopped."""

    auto_stop: LimitedDuration | None = None
    """Stop the training after this long, such as `1h`, and upload what is there. Absent: never."""

    # The schema would write the default in ISO 8601, which the form would send back to us.
    grace: LimitedDuration = Field(timedelta(seconds=10), json_schema_extra={"default": "10s"})
    """How long the ranks may take to leave after a stop request before they are killed."""


class TrainingJob(_Spec):
    """A training job: what to train, on what, with which parameters, where the results go."""

    name: Name
    """Name of the job; runs are named after it."""

    description: str = Field(default="", max_length=1024)
    """What the job is for."""

    tags: list[Line] = []
    """Words to find the run by."""

    algorithm: ScriptAlgorithm | CommandAlgorithm
    """The code and how it is started."""

    inputs: list[InputChannel] = []
    """Folders that the script reads."""

    outputs: list[OutputChannel] = []
    """Folders that the script writes."""

    hyperparameters: dict[Name, HyperparameterValue] = {}
    """Given to the script as `--name value`: texts, numbers, true or false, or lists of these."""

    env: dict[str, EnvValue] = {}
    """Environment variables of the ranks. Everyone who can see the run can read them."""

    resources: Resources = Resources()
    """What the job needs of a machine."""

    launcher: Literal["single", "torchrun", "mpi"] = "single"
    """What starts the ranks: one process, torch.distributed.run, or mpirun."""

    limits: Limits = Limits()
    """When the run is stopped."""

    store: Name | None = None
    """Name of the ObjectStore block for `s3://` urls; absent: the AWS_* environment."""

    @property
    def world_size(self) -> int:
        """Number of ranks of the job."""
        return self.resources.nodes * self.resources.processes_per_node

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a job from a YAML or JSON file and resolve its relative paths.

        Args:
            path: The job file.

        Raises:
            JobError: With all mistakes of the file at once.
        """
        file = Path(path).absolute()
        return cls.parse(read_job_file(file), source=str(path)).resolved(file.parent)

    @classmethod
    def parse(cls, data: Any, source: str = "job") -> Self:
        """Build a job from plain values, such as parameters of a deployment.

        Args:
            data: Keys and values as in a job file.
            source: What the error message calls them.

        Raises:
            JobError: With all mistakes at once.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise JobError(source, problems_of(error, cls, data)) from error

    def resolved(self, base: Path) -> Self:
        """Return the job with every path that has no scheme made absolute below `base`."""

        def absolute(part: Code | InputChannel | OutputChannel) -> object:
            return part.model_copy(update={"url": _absolute(part.url, base)})

        algorithm = self.algorithm.model_copy(update={"code": absolute(self.algorithm.code)})
        return self.model_copy(
            update={
                "algorithm": algorithm,
                "inputs": [absolute(channel) for channel in self.inputs],
                "outputs": [absolute(channel) for channel in self.outputs],
            }
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = problems_across_fields(self)
        if problems:
            raise ProblemsFound(problems)
        return self


def output_url(channel: OutputChannel, run_id: str) -> str:
    """Return where the files of `channel` go in the run with this id."""
    return channel.url.replace(RUN_ID, run_id)


def _absolute(url: str, base: Path) -> str:
    if "://" in url:
        return url
    absolute = os.path.normpath(base / Path(url).expanduser())
    return absolute + "/" if url.endswith("/") else absolute
