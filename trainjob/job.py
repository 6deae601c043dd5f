"""The training job: the one model behind job files, the UI form, Python and deployments.

Every key here does something; keys of later machinery are added with it. `TrainingJob.load` reads
a file and reports all mistakes at once. Whether the named things exist is asked by
`trainjob.check`, not here.
"""

import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from trainjob.algorithm import Code, CommandAlgorithm, ScriptAlgorithm, merged_hyperparameters
from trainjob.env_rules import open_secret_problems
from trainjob.errors import JobError
from trainjob.flavor_catalogue import resolve_flavor
from trainjob.form_titles import title_in_group
from trainjob.job_problems import ProblemsFound, problems_of
from trainjob.job_rules import RUN_ID, problems_across_fields
from trainjob.jobfile import read_job_file
from trainjob.limits import Limits
from trainjob.parameters import HyperparameterValue
from trainjob.profiles import GivenAs, ProfileName
from trainjob.registry.folder import registry_of_machine
from trainjob.registry.references import resolve_references
from trainjob.registry.registry import Registry
from trainjob.resource_rules import without_guessed_device
from trainjob.resources import Resources
from trainjob.spec import ContentFingerprint, EnvValue, InputUrl, Line, Name, SecretName, Spec


class InputChannel(Spec):
    """Data that the script reads."""

    name: Name
    """The script gets the folder as `--NAME PATH` and as environment variable NAME in capitals."""

    url: InputUrl = Field(default="", validate_default=True)
    """A folder, `s3://bucket/prefix/`, a folder that fsspec reads (`gs://`, `abfs://`, `hdfs://`,
    `webhdfs://`, `https://`, `http://`), one archive (.zip, .tar, .tar.gz, .tgz, .tar.zst) at any
    of these, or another file, which comes alone in a folder. Without a scheme: relative to the job
    file, in a deployment to the worker's checkout. Left out where `dataset` or `model` says it."""

    dataset: Line | None = None
    """A saved dataset in place of a url, as `NAME@VERSION`; NAME alone: its latest version. Other
    data than that of the version is refused. See `python -m flows dataset list`."""

    model: Line | None = None
    """A saved model in place of a url, like `dataset`. See `python -m flows model list`."""

    mode: Literal["link", "copy", "stream"] = "link"
    """How the script gets the data. `link`: a folder to read only, which other runs share. `copy`:
    a folder of its own, which it may write to. `stream`: nothing is copied or verified; the script
    gets the url instead of a folder and, of `s3://`, in its environment only, the credentials of
    the store as AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION."""

    unpack: Literal["auto", "always", "never"] = "auto"
    """Whether one archive is unpacked. `auto`: yes, but not one that becomes more than 100 times as
    large, and more than 1 GiB. `always`: that one, too. `never`: the script gets the archive."""

    archive_names: Literal["utf-8", "gbk", "big5", "shift_jis", "euc_kr", "cp437"] = "utf-8"
    """How names in an archive are written that are not marked as UTF-8: `gbk` for most archives
    that were packed on a Chinese Windows."""

    given_as: GivenAs | None = None
    """How the script gets the folder: as the `argument` `--NAME PATH`, as the variable NAME of its
    environment (`env`), or as `both`. Absent: as the scripts of the profile expect it, which with
    `plain` is both."""

    expect: ContentFingerprint | None = None
    """The data that the job is about, as `sha256:` and 64 digits: other data is refused. A run
    tells the fingerprint of its inputs in its report."""

    @property
    def is_streamed(self) -> bool:
        """Whether the script gets the url and no folder."""
        return self.mode == "stream"

    @property
    def needs_credentials(self) -> bool:
        """Whether the script reaches the store of the job by itself."""
        return self.is_streamed and self.url.startswith("s3://")


class OutputChannel(Spec):
    """A folder that the script writes and that is uploaded after the training."""

    name: Name
    """The script gets the folder as `--NAME PATH` and as environment variable NAME in capitals."""

    url: Line
    """Where the files go: an empty or new folder or `s3://bucket/prefix/`; `{run_id}` is the id of
    the run. Without a scheme: relative to the job file, in a deployment to the checkout."""

    given_as: GivenAs | None = None
    """How the script gets the folder, as with an input: `argument`, `env` or `both`."""


class Environment(Spec):
    """The Python packages that the ranks find beside those of the worker."""

    requirements: bool = False
    """Whether what `requirements.txt` of the code asks for is installed before the training, in an
    environment that all runs share which ask for the same. torch stays that of the worker."""


class Checkpoints(Spec):
    """A folder that the script saves to and goes on from, kept in a store while it trains."""

    name: Name = "checkpoint_dir"
    """The script gets the folder as `--NAME PATH` and as environment variable NAME in capitals."""

    url: Line
    """Where the checkpoints are kept: a folder or `s3://bucket/prefix/` of this job alone. A run
    starts from what is there; `{run_id}` in it becomes the id of the run, so that only restarts of
    the same run go on from it. Without a scheme: a path relative to the job file, or in a
    deployment to the checkout of the worker."""


class Metric(Spec):
    """A number that is read from the lines that the script writes."""

    name: Name
    """What it is called in plots, tables and `limits.target`."""

    regex: Line
    """A regular expression with one group that holds the number: `loss[= ]+([0-9.e+-]+)`."""


class Logs(Spec):
    """Where the output of the ranks goes beside the files on the machine."""

    url: Line | None = None
    """Keep all log files here while the training runs and at its end: a folder or
    `s3://bucket/prefix/` that is empty; `{run_id}` in it becomes the id of the run. Absent: the
    files stay on the machine alone."""

    ranks: Literal["0", "all"] = "0"
    """Whose output goes to Prefect's log: that of rank 0, or of all ranks."""


_HasUrl = Code | InputChannel | OutputChannel | Checkpoints | Logs


def _or_saved(schema: dict[str, Any]) -> None:
    """Let the schema take the name of a saved algorithm, which `parse` puts the algorithm for."""
    schema["anyOf"].append({"type": "string", "title": "Saved algorithm"})


class TrainingJob(Spec):
    """A training job: what to train, on what, with which parameters, where the results go."""

    model_config = ConfigDict(field_title_generator=title_in_group)

    name: Name
    """Name of the job; runs are named after it."""

    kind: Literal["training", "inference"] = "training"
    """What the job does. Both run in the same way; `inference` needs a saved model as an input."""

    description: str = Field(default="", max_length=1024)
    """What the job is for."""

    tags: list[Line] = []
    """Words to find the run by."""

    profile: ProfileName = "plain"
    """The product that the job and its script were written for: its rules for names, and the
    folders, arguments and environment that its scripts expect. See docs/products.md."""

    algorithm: ScriptAlgorithm | CommandAlgorithm = Field(json_schema_extra=_or_saved)
    """The code and how it is started; or the name of a saved algorithm, such as `digits@3`. NAME
    alone is its latest version. See `python -m flows algorithm list`."""

    inputs: list[InputChannel] = []
    """Data that the script reads."""

    outputs: list[OutputChannel] = []
    """Folders that the script writes."""

    checkpoints: Checkpoints | None = None
    """Where the script saves its state to go on from. Absent: on the machine alone, in the folder
    that the environment variable TRAINJOB_CHECKPOINT_DIR names."""

    store: Name | None = None
    """Name of the ObjectStore block for `s3://` urls; absent: the AWS_* environment."""

    hyperparameters: dict[Name, HyperparameterValue | None] = {}
    """Given to the script as `--name value`: texts, numbers, true or false, or lists of these; null
    removes what the algorithm gives by default."""

    env: dict[str, EnvValue] = {}
    """Environment variables of the ranks. Everyone who can see the run can read them. Refused is
    what a run sets itself, such as `RANK`, `MASTER_*`, `TORCHELASTIC_*`, `PMI_*` and `OMPI_*`."""

    secrets: dict[str, SecretName] = {}
    """Environment variables whose values are kept by Prefect: by the name of the variable, that of
    a saved block of the type Secret. What is told of the run has `***` in place of the value."""

    environment: Environment = Environment()
    """The Python packages that the ranks find beside those of the worker."""

    sandbox: bool = False
    """Whether the ranks see only what is theirs: code and inputs to read, outputs, checkpoints, an
    own /tmp and home to write, programs and devices; nothing of the worker's home, of other runs or
    the registry. Needs bubblewrap. See docs/sandbox.md."""

    resources: Resources = Resources()
    """What the job needs of a machine."""

    launcher: Literal["single", "torchrun", "mpi", "msrun"] = "single"
    """What starts the ranks: one process, torch.distributed.run, mpirun, or MindSpore's msrun."""

    limits: Limits = Limits()
    """When the run is stopped, and when it is started again."""

    metrics: list[Metric] = []
    """Numbers that are read from the lines that the script writes, for plots and `limits.target`.
    What the script reports by `trainjob.progress` or writes for TensorBoard is found without."""

    logs: Logs = Logs()
    """Where the output of the ranks goes."""

    @property
    def saved_versions(self) -> list[str]:
        """The saved versions that the job uses, as ``KIND NAME@VERSION``."""
        algorithm = self.algorithm.registered
        return [
            *([f"algorithm {algorithm}"] if algorithm else []),
            *(f"dataset {c.dataset}" for c in self.inputs if c.dataset),
            *(f"model {c.model}" for c in self.inputs if c.model),
        ]

    @property
    def world_size(self) -> int:
        """Number of ranks of the job."""
        return self.resources.nodes * self.resources.processes_per_node

    @property
    def given_hyperparameters(self) -> dict[str, HyperparameterValue]:
        """What the script gets: the defaults of the algorithm, and over them the job's values."""
        return merged_hyperparameters(self.algorithm, self.hyperparameters).values

    @classmethod
    def load(cls, path: str | os.PathLike[str], registry: Registry | None = None) -> Self:
        """Read a job from a YAML or JSON file and resolve its relative paths.

        Args:
            path: The job file.
            registry: Where saved versions are; absent: in the folder of this machine.

        Raises:
            JobError: With all mistakes of the file at once.
        """
        file = Path(path).absolute()
        job = cls.parse(read_job_file(file), str(path), registry, is_new=True)
        return job.resolved(file.parent)

    @classmethod
    def parse(
        cls,
        data: Any,
        source: str = "job",
        registry: Registry | None = None,
        *,
        is_new: bool = False,
    ) -> Self:
        """Build a job from plain values, such as parameters of a deployment.

        Saved versions and a flavor that it names are looked up in the registry, and the job keeps
        what they are: a name alone may be another version tomorrow.

        Args:
            data: Keys and values as in a job file.
            source: What the error message calls them.
            registry: Where saved versions are; absent: in the folder of this machine.
            is_new: Whether a person gives it now: saved versions have to be there even if the job
                says all by itself, and `env` may hold no secret. What was sent before runs on.

        Raises:
            JobError: With all mistakes at once.
        """
        registry = registry or registry_of_machine()
        resolved = resolve_references(data, registry, must_exist=is_new)
        plain, flavor_problems = resolve_flavor(resolved.data, registry.place)
        problems = [*resolved.problems, *flavor_problems]
        problems += open_secret_problems(plain.get("env")) if is_new else []
        try:
            job = cls.model_validate(plain)
        except ValidationError as error:
            problems += problems_of(error, cls, plain)
            raise JobError(source, without_guessed_device(problems, data)) from error
        if problems:
            raise JobError(source, problems)
        return job

    @classmethod
    def restored(cls, data: Any, source: str = "job") -> Self:
        """Build a job from what a process of its run has kept, whatever is registered now.

        Args:
            data: What `model_dump` returned.
            source: What the error message calls it.

        Raises:
            JobError: If it was kept by a release whose jobs had other keys.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise JobError(source, problems_of(error, cls, data)) from error

    def resolved(self, base: Path) -> Self:
        """Return the job with every path that has no scheme made absolute below `base`."""

        def absolute(part: _HasUrl | None) -> object:
            if part is None or part.url is None:
                return part
            return part.model_copy(update={"url": _absolute(part.url, base)})

        algorithm = self.algorithm.model_copy(update={"code": absolute(self.algorithm.code)})
        return self.model_copy(
            update={
                "algorithm": algorithm,
                "inputs": [absolute(channel) for channel in self.inputs],
                "outputs": [absolute(channel) for channel in self.outputs],
                "checkpoints": absolute(self.checkpoints),
                "logs": absolute(self.logs),
            }
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = problems_across_fields(self)
        if problems:
            raise ProblemsFound(problems)
        return self


def url_of_run(url: str, run_id: str) -> str:
    """Return the url of an output, of checkpoints or logs in the run with this id."""
    return url.replace(RUN_ID, run_id)


def _absolute(url: str, base: Path) -> str:
    if "://" in url:
        return url
    absolute = os.path.normpath(base / Path(url).expanduser())
    return absolute + "/" if url.endswith("/") else absolute
