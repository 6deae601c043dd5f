"""The algorithm of a job: its code, how that is started, and what it takes.

Part of the job model; saved algorithms are these models, too.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import ConfigDict, Field

from trainjob.declared_channels import DeclaredInput, DeclaredOutput
from trainjob.engines import EngineName
from trainjob.form_titles import WRITTEN_BY_OTHERS
from trainjob.hyperparameter_rules import HyperparameterRule, Merged, merge
from trainjob.parameters import ArgumentStyle, HyperparameterValue
from trainjob.resources import Constraints
from trainjob.spec import ContentFingerprint, Line, Spec


class Code(Spec):
    """Where the code is."""

    url: Line
    """A folder, `s3://bucket/prefix/`, an archive (.zip, .tar, .tar.gz, .tgz) at either, or a git
    repository (`git+https://…`, `git+ssh://…`, `git+file://…`). Without a scheme: a path relative
    to the job file, or in a deployment to the checkout of the worker. What is no code in a folder
    of the machine is named by a file `.trainignore` in it, with patterns as in `.gitignore`."""

    ref: Line | None = None
    """Branch, tag or commit of a git repository; absent: its default branch."""

    expect: ContentFingerprint | None = None
    """The code that the job is about, as `sha256:` and 64 digits: other code is refused. A run
    tells the fingerprint of its code in the receipts of its outputs."""


class _Algorithm(Spec):
    """What algorithms of every form have."""

    arguments: ArgumentStyle = ArgumentStyle()
    """How the code reads channels and hyperparameters from its command line."""

    engine: EngineName | None = None
    """The framework it was written for, as products write it: `PyTorch / 1.9-py3.6-cuda11.1-gpu`.
    What is installed is compared with it. See `python -m flows engine list`."""

    constraints: Constraints = Constraints()
    """What it can use of machines."""

    hyperparameters: tuple[HyperparameterRule, ...] = Field((), title="Rules for hyperparameters")
    """Rules for the hyperparameters of a job, and their defaults."""

    allow_custom_hyperparameters: bool | None = None
    """Whether a job may give others than the rules name; absent: if there are no rules."""

    inputs: tuple[DeclaredInput, ...] | None = Field(
        None, title="Declared inputs", json_schema_extra=WRITTEN_BY_OTHERS
    )
    """What it reads: the inputs of a job must be these, also in its later runs. A saved algorithm
    says it. Absent: a job may give any inputs."""

    outputs: tuple[DeclaredOutput, ...] | None = Field(
        None, title="Declared outputs", json_schema_extra=WRITTEN_BY_OTHERS
    )
    """What it writes: the outputs of a job must be these. Absent: a job may give any outputs."""

    registered: Line | None = Field(None, json_schema_extra=WRITTEN_BY_OTHERS)
    """The saved algorithm that this is, as `NAME@VERSION`; a run writes it when it reads the job.
    To use one, give its name in place of all of this: `algorithm: digits@3`."""


class _Script(Spec):
    kind: Literal["script"] = Field("script", json_schema_extra=WRITTEN_BY_OTHERS)
    """This form of algorithm; in the UI, the tab chooses it."""

    code: Code
    """Where the code is."""

    boot_file: Line
    """The one Python file that is started, relative to the code folder; ends in .py or .pyc."""


class _Command(Spec):
    kind: Literal["command"] = Field("command", json_schema_extra=WRITTEN_BY_OTHERS)
    """This form of algorithm; in the UI, the tab chooses it."""

    code: Code
    """Where the code is."""

    command: Line
    """The command as typed in a terminal, such as `sh start.sh`; it is split like a shell does, but
    no shell runs it. Channels and hyperparameters are appended as `--name value`."""


# The form shows fields in their order, which is that of the bases from the last to the first.
class ScriptAlgorithm(_Algorithm, _Script):
    """Code whose boot file is a Python script, run on every rank."""

    model_config = ConfigDict(title="Script")  # the form's tab


class CommandAlgorithm(_Algorithm, _Command):
    """Code with a startup command in any language, run on every rank."""

    model_config = ConfigDict(title="Startup command")  # the form's tab


def merged_hyperparameters(
    algorithm: ScriptAlgorithm | CommandAlgorithm,
    given: Mapping[str, HyperparameterValue | None],
) -> Merged:
    """Return the defaults of an algorithm with the values of a job over them."""
    return merge(
        algorithm.hyperparameters,
        given,
        allows_custom=algorithm.allow_custom_hyperparameters,
        style=algorithm.arguments,
    )
