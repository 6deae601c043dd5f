"""Makes versions of saved things: looks at what is there, finds its fingerprint, saves the record.

Called by ``python -m flows algorithm | dataset | model register``.
"""

import tempfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from trainjob.algorithm import CommandAlgorithm, ScriptAlgorithm
from trainjob.check.script import examine_script
from trainjob.code_limits import OWN_LIMITS, limits_of_machine
from trainjob.declared_channels import DeclaredInput, DeclaredOutput
from trainjob.errors import JobError, Problem, StoreNotFound
from trainjob.job import TrainingJob
from trainjob.job_problems import ProblemsFound, problems_of
from trainjob.jobfile import read_job_file
from trainjob.registry.data import DataSource, channel_of, read_data, store_of
from trainjob.registry.records import RunOrigin, SavedAlgorithm, SavedDataset, SavedModel
from trainjob.registry.registry import Registry
from trainjob.source import fetch_code
from trainjob.spec import Spec
from trainjob.startup import startup_problems
from trainjob.storage.local_tree import list_folder
from trainjob.storage.receipt import Receipt, read_receipt
from trainjob.storage.settings import StoreSettings
from trainjob.storage.unpack import is_dataset_archive

_FIRST = 1  # the registry gives the number


def _nobody(_text: str) -> None:
    """Hear a warning for who does not ask for any."""


class AlgorithmFile(Spec):
    """The file that describes an algorithm to be saved."""

    description: str = Field(default="", max_length=1024)
    """What the algorithm does."""

    algorithm: ScriptAlgorithm | CommandAlgorithm
    """The code and how it is started, as in a job file; paths are relative to this file."""

    inputs: list[DeclaredInput] | None = None
    """What it reads; absent: jobs may give any inputs."""

    outputs: list[DeclaredOutput] | None = None
    """What it writes; absent: jobs may give any outputs."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        do = "write it beside algorithm"
        problems = [
            Problem(f"algorithm.{key}", f"{key} of the file", f"{key} of its algorithm", do)
            for key in ("inputs", "outputs")
            if getattr(self.algorithm, key) is not None
        ]
        if problems:
            raise ProblemsFound(problems)
        return self


def register_algorithm(
    registry: Registry,
    name: str,
    path: Path,
    settings: StoreSettings | None,
    store: str | None = None,
    warn: Callable[[str], object] = _nobody,
) -> SavedAlgorithm:
    """Fetch the code that an `AlgorithmFile` names, find what it starts, and save it.

    Args:
        registry: Where it is saved.
        name: Of which name it is the next version.
        path: The file, in YAML or JSON.
        settings: How to reach an object store; absent: the AWS_* environment.
        store: Name of the ObjectStore block that the settings are of.
        warn: Called with each declared channel that the script does not read: ModelArts' Code Path
            Parameter "must be the same as the data input parameter parsed in your algorithm code".

    Raises:
        JobError: With everything that is wrong with the file, the program that is not in the code
            included.
        SourceError: If the code cannot be had.
        StoreError: If the store of the code or the registry cannot be used.
    """
    data = read_job_file(path.absolute(), "algorithm")
    try:
        file = AlgorithmFile.model_validate(data)
    except ValidationError as error:
        raise JobError(str(path), problems_of(error, AlgorithmFile, data)) from error
    job = _checked(name, file, str(path)).resolved(path.absolute().parent)
    algorithm = file.algorithm.model_copy(update={"code": job.algorithm.code})
    with tempfile.TemporaryDirectory(prefix="trainjob-register-") as scratch:
        folder = Path(scratch) / "code"
        code = fetch_code(algorithm.code, folder, settings, limits_of_machine(OWN_LIMITS))
        files = [entry.path for entry in list_folder(folder).files]
        if problems := startup_problems(algorithm, folder, files):
            raise JobError(str(path), problems)
        for problem in _unread_channels(job, folder):
            warn(f"{problem} [{problem.id}]")
    pinned = {"expect": code.fingerprint, "ref": code.commit or algorithm.code.ref}
    return registry.add(
        SavedAlgorithm(
            name=name,
            version=_FIRST,
            created=_now(),
            description=file.description,
            definition=algorithm.model_copy(
                update={"code": algorithm.code.model_copy(update=pinned), "registered": None}
            ),
            inputs=file.inputs,
            outputs=file.outputs,
            store=store_of(algorithm.code.url, store),
            num_entries=code.num_entries,
            size_bytes=code.size_bytes,
        )
    )


def register_dataset(
    registry: Registry,
    name: str,
    source: DataSource,
    settings: StoreSettings | None,
    **facts: Any,
) -> SavedDataset:
    """Save the data that is at a place now as the next version of a dataset.

    Args:
        registry: Where it is saved.
        name: Of which name it is the next version.
        source: Where the data is.
        settings: How to reach an object store; absent: the AWS_* environment.
        **facts: Other fields of `SavedDataset`: description, labelling, format, is_split. If it is
            not said whether it is split, it is where folders train and val are found.

    Raises:
        JobError: If the url or the format is none that jobs read.
        StoreError: If the data cannot be read, or the registry cannot be written.
    """
    label = f"dataset {name!r}"
    channel = channel_of(label, name, source)
    _require_facts(label, SavedDataset, {"name": name, **facts})
    found = read_data(registry, label, channel, settings)
    if facts.get("is_split") is None:
        facts["is_split"] = found.is_split
    version = SavedDataset(
        name=name,
        version=_FIRST,
        created=_now(),
        store=store_of(channel.url, source.store),
        **found.facts,
        **facts,
    )
    return registry.add(version)


def register_model(
    registry: Registry,
    name: str,
    source: DataSource,
    settings: StoreSettings | None,
    description: str = "",
) -> SavedModel:
    """Save the files at a place as the next version of a model, with the run that made them.

    Args:
        registry: Where it is saved.
        name: Of which name it is the next version.
        source: Where the files are; with the receipt of a run among them they are its result.
        settings: How to reach an object store; absent: the AWS_* environment.
        description: What it is.

    Raises:
        JobError: If the url is none that jobs read, or the run that wrote there made no result.
        StoreError: If the files cannot be read, or the registry cannot be written.
    """
    label = f"model {name!r}"
    channel = channel_of(label, name, source)
    _require_facts(label, SavedModel, {"name": name, "description": description})
    receipt = None if is_dataset_archive(channel.url) else _receipt(channel.url, settings)
    if receipt is not None and not receipt.is_result:
        asked = f"the result of a run at {source.url!r}"
        left_out = " without all its files" if receipt.left_out else ""
        found = f"what run {receipt.run_id} left, which ended {receipt.state}{left_out}"
        do = "register the output of a run that completed, or copy the files elsewhere to import"
        raise JobError(label, [Problem("url", asked, found, do)])
    facts = receipt.facts if receipt else {}
    # What `upload` brought has a receipt, too, but no run made it.
    is_of_run = bool(facts.get("job"))
    version = SavedModel(
        name=name,
        version=_FIRST,
        created=_now(),
        description=description,
        metrics=facts.get("metrics", {}),
        run=_origin(receipt) if receipt and is_of_run else None,
        store=store_of(channel.url, source.store),
        **read_data(registry, label, channel, settings).facts,
    )
    return registry.add(version)


def _unread_channels(job: TrainingJob, code_dir: Path) -> list[Problem]:
    """Return one problem of each channel that the script is not seen to read."""
    found: dict[str, Problem] = {}
    for problem in examine_script(job, code_dir).problems:
        if problem.field.startswith(("inputs[", "outputs[")):
            found.setdefault(problem.field, problem)
    return list(found.values())


def _checked(name: str, file: AlgorithmFile, source: str) -> TrainingJob:
    """Return a job of the algorithm, whose rules ask the same of its urls and names.

    Raises:
        JobError: With everything that would be wrong in every job.
    """
    algorithm = file.algorithm.model_dump(mode="json")
    for rule in algorithm["hyperparameters"]:
        rule["required"] = False  # the values come with the jobs
    del algorithm["constraints"]  # so do the machines
    data = {
        "name": name,
        "algorithm": algorithm,
        "inputs": _channels("in", file.inputs),
        "outputs": _channels("out", file.outputs),
    }
    return TrainingJob.parse(data, source)


def _channels(
    bucket: str, declared: Iterable[DeclaredInput | DeclaredOutput] | None
) -> list[dict[str, str]]:
    return [
        {"name": channel.name, "url": f"s3://{bucket}/{i}/"}
        for i, channel in enumerate(declared or ())
    ]


def _require_facts(
    label: str, model: type[SavedDataset | SavedModel], facts: dict[str, Any]
) -> None:
    """Refuse what people say of data before it is read, which may take long.

    Raises:
        JobError: With everything that cannot be saved.
    """
    found = {"url": "/", "fingerprint": f"sha256:{0:064}", "is_read": False, "created": _now()}
    data = {"version": _FIRST, **found, **facts}
    try:
        model.model_validate(data)
    except ValidationError as error:
        raise JobError(label, problems_of(error, model, data)) from error


def _receipt(url: str, settings: StoreSettings | None) -> Receipt | None:
    try:
        return read_receipt(url, settings)
    except StoreNotFound:
        return None


def _origin(receipt: Receipt) -> RunOrigin:
    job = receipt.facts.get("job") or {}
    used = receipt.facts.get("used", [])
    return RunOrigin(run_id=receipt.run_id, job=job.get("name"), state=receipt.state, used=used)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
