"""``python -m flows algorithm | dataset | model``: save versions by name, list and delete them.

Nothing is printed here: every command returns an answer, which `flows.__main__` shows.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from flows.cache_command import Answer
from flows.registry_place import chosen_registry
from flows.text_table import table
from trainjob.errors import TrainjobError
from trainjob.registry.contents import ListedFile
from trainjob.registry.data import DataSource
from trainjob.registry.file_list import listed_files
from trainjob.registry.records import (
    Kind,
    Record,
    Reference,
    RegistryError,
    SavedAlgorithm,
    SavedDataset,
    SavedModel,
)
from trainjob.registry.register import register_algorithm, register_dataset, register_model
from trainjob.registry.registry import Registry
from trainjob.storage.settings import StoreSettings
from trainjob.values import counted, format_size, printable

_HEAD = ("NAME", "SAVED", "WHAT", "WHERE", "DESCRIPTION")
_HELP: dict[Kind, str] = {
    "algorithm": "saved algorithms: code, how it is started, what it takes",
    "dataset": "saved datasets: a place and the fingerprint of what is there",
    "model": "saved models: files to start from, and the run that made them",
}


def add_registry_commands(commands: Any) -> list[argparse.ArgumentParser]:
    """Add the commands of every kind to the command line, and return their parsers.

    Args:
        commands: What ``add_subparsers`` of the parser returned. ``answer`` of its arguments will
            be a function that takes them and settings of a store, and returns an `Answer`.
    """
    return [_add_kind(commands, kind) for kind in _HELP]


def _add_kind(commands: Any, kind: Kind) -> argparse.ArgumentParser:
    parser = commands.add_parser(kind, help=_HELP[kind])
    actions = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    register = actions.add_parser("register", help="save what is there as the next version")
    register.add_argument("name", metavar="NAME", help=f"name of the {kind}")
    if kind == "algorithm":
        register.add_argument("file", type=Path, metavar="FILE.yaml", help="what describes it")
        register.set_defaults(answer=_register_algorithm)
    else:
        _add_data(register)
    if kind == "dataset":
        register.add_argument("--labelling", metavar="TYPE", help="such as image-classification")
        register.add_argument("--format", metavar="FORMAT", help="how its files are written")
        split = argparse.BooleanOptionalAction
        register.add_argument("--split", action=split, help="into training and validation data")
        register.set_defaults(answer=_register_dataset)
    if kind == "model":
        register.set_defaults(answer=_register_model)
    register.add_argument("--store", metavar="NAME", help="ObjectStore block; else AWS_* variables")

    listed = actions.add_parser("list", help="the latest version of every name")
    listed.add_argument("name", nargs="?", metavar="NAME", help="all versions of this name")
    listed.set_defaults(answer=_list)

    show = actions.add_parser("show", help="everything about one version")
    show.add_argument("reference", metavar="NAME[@VERSION]", help="the latest without VERSION")
    if kind != "algorithm":
        show.add_argument("--files", action="store_true", help="every file: size, digest, path")
    show.set_defaults(answer=_show, files=False)

    delete = actions.add_parser("delete", help="delete one version; its data stays where it is")
    delete.add_argument("reference", metavar="NAME@VERSION", help="which one")
    delete.add_argument(
        "--force", action="store_true", help="even if others use it, or it is broken"
    )
    delete.set_defaults(answer=_delete)

    made = [register, listed, show, delete]
    if kind == "algorithm":
        made.append(_add_deploy(actions))
    for action in made:
        action.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(kind=kind, store=None)
    return cast(argparse.ArgumentParser, parser)


def _add_deploy(actions: Any) -> argparse.ArgumentParser:
    deploy = actions.add_parser("deploy", help="give it a form of its own on the server")
    deploy.add_argument("reference", metavar="NAME[@VERSION]", help="the latest without VERSION")
    deploy.add_argument("--name", metavar="NAME", help="of the deployment; else of the algorithm")
    deploy.add_argument(
        "--pool", metavar="POOL", help="as training-job/POOL runs; else that of its device"
    )
    deploy.set_defaults(answer=_deploy)
    return cast(argparse.ArgumentParser, deploy)


def _add_data(register: argparse.ArgumentParser) -> None:
    register.add_argument("url", metavar="URL", help="a folder, an archive or another file")
    register.add_argument("--description", default="", metavar="TEXT", help="what it is")
    choices = ("auto", "always", "never")
    register.add_argument("--unpack", choices=choices, default="auto", help="of one archive")
    register.add_argument(
        "--archive-names", default="utf-8", metavar="ENCODING", help="such as gbk"
    )
    register.add_argument(
        "--expect", metavar="SHA256", help="its fingerprint, if known: the data is not read"
    )


def _register_algorithm(arguments: argparse.Namespace, settings: StoreSettings) -> Answer:
    registry, name, file = chosen_registry(), arguments.name, arguments.file
    said: list[str] = []
    store = arguments.store
    saved = _saved(register_algorithm(registry, name, file, settings, store, warn=said.append))
    return _with_warnings(saved, said)


def _register_dataset(arguments: argparse.Namespace, settings: StoreSettings) -> Answer:
    version = register_dataset(
        chosen_registry(),
        arguments.name,
        _source(arguments),
        settings,
        description=arguments.description,
        labelling=arguments.labelling,
        format=arguments.format,
        is_split=arguments.split,
    )
    answer = _saved(version)
    # Whether there is a server to be told, which takes a second, only Prefect knows: a profile of
    # it may name one.
    from flows.new_versions import announce_version

    if problem := announce_version(version):
        return _with_warnings(
            answer, [f"no job that waits for a new version is started: {problem}"]
        )
    return answer


def _register_model(arguments: argparse.Namespace, settings: StoreSettings) -> Answer:
    version = register_model(
        chosen_registry(),
        arguments.name,
        _source(arguments),
        settings,
        arguments.description,
    )
    return _saved(version)


def _source(arguments: argparse.Namespace) -> DataSource:
    return DataSource(
        url=arguments.url,
        unpack=arguments.unpack,
        archive_names=arguments.archive_names,
        expect=arguments.expect,
        store=arguments.store,
    )


def _with_warnings(answer: Answer, said: Sequence[str]) -> Answer:
    if not said:
        return answer
    lines = [f"warning: {printable(text)}" for text in said]
    return Answer("\n".join([answer.text, *lines]), answer.data | {"warnings": lines})


def _saved(record: Record) -> Answer:
    text = f"saved the {record.kind} {record}: {_what(record)}, {printable(_where(record))}"
    return Answer(text, record.model_dump(mode="json"))


def _list(arguments: argparse.Namespace, _settings: StoreSettings) -> Answer:
    registry, kind = chosen_registry(), arguments.kind
    if arguments.name is None:
        found = registry.survey(kind, newest=True)
    else:
        name = Reference.parse(arguments.name).name
        found = registry.survey(kind, name)
        if not found.records and not found.broken:
            registry.find(kind, Reference(name))  # says which there are
    records, broken = found.records, [_clean(str(error)) for error in found.broken]
    lines = table([_HEAD, *map(_row, records)]) if records else []
    noun = "version" if arguments.name else kind
    lines += [f"broken: {text}" for text in broken]
    lines.append(f"{counted(len(records), noun)} in {registry.place}")
    data = {f"{kind}s": [r.model_dump(mode="json") for r in records], "broken": broken}
    return Answer("\n".join(lines), data)


def _show(arguments: argparse.Namespace, _settings: StoreSettings) -> Answer:
    registry = chosen_registry()
    record = registry.find(arguments.kind, Reference.parse(arguments.reference))
    if arguments.files:
        return _files(listed_files(registry, cast(SavedDataset | SavedModel, record)))
    users = [f"model {model}" for model in registry.users(record).records]
    data = record.model_dump(mode="json", exclude_none=True) | {"used_by": users}
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return Answer(text.rstrip("\n"), data)


def _files(files: Sequence[ListedFile]) -> Answer:
    lines = [f"{f.size_bytes:>15,}  {f.sha256}  {printable(f.path)}" for f in files]
    size_bytes = sum(file.size_bytes for file in files)
    lines.append(f"{counted(len(files), 'file')}, {format_size(size_bytes)}")
    return Answer("\n".join(lines), {"files": [file._asdict() for file in files]})


def _delete(arguments: argparse.Namespace, _settings: StoreSettings) -> Answer:
    registry, kind = chosen_registry(), arguments.kind
    reference = Reference.parse(arguments.reference)
    asked = f"the {kind} {arguments.reference!r} to be deleted"
    if reference.version is None:
        do = f"name the version to delete, such as {registry.find(kind, reference)}"
        raise RegistryError(asked, "no number of a version", do)
    broken = registry.survey(kind, reference.name, reference.version).broken
    users: list[str] = []
    if not (broken and arguments.force):
        record = registry.find(kind, reference)
        users = _users_to_be_left(registry, record, asked, is_forced=arguments.force)
    registry.delete(kind, reference.name, reference.version)
    text = f"deleted the {kind} {reference}; its number is not given again"
    return Answer(text, {"deleted": f"{kind} {reference}", "used_by": users})


def _users_to_be_left(
    registry: Registry, record: Record, asked: str, *, is_forced: bool
) -> list[str]:
    """Return which versions were made from this one.

    Raises:
        RegistryError: If it must not be deleted because of them.
    """
    found = registry.users(record)
    users = [f"model {model}" for model in found.records]
    if users and not is_forced:
        do = "delete these first, or give --force"
        raise RegistryError(asked, f"{', '.join(users)}, made from it", do)
    if found.broken and not is_forced:
        do = "mend it first, or give --force"
        raise RegistryError(asked, f"one perhaps made from it: {found.broken[0]}", do)
    return users + _deployments_to_be_left(registry, record, asked, is_forced=is_forced)


def _deployments_to_be_left(
    registry: Registry, record: Record, asked: str, *, is_forced: bool
) -> list[str]:
    """Return which deployments of the server, where one is configured, name a version.

    Raises:
        RegistryError: If it must not be deleted because of them.
    """
    # Whether there is a server, only Prefect knows: a profile of it may name one.
    from flows.version_users import deployments_that_name

    is_latest = record in registry.survey(record.kind, record.name, newest=True).records
    try:
        users = deployments_that_name(record, is_latest=is_latest)
    except TrainjobError as error:
        if is_forced:
            return []
        found = f"no word of the deployments that may name it: {error}"
        raise RegistryError(asked, found, "or give --force") from error
    if users and not is_forced:
        names = ", ".join(repr(user.removeprefix("deployment ")) for user in users)
        found = f"the deployment {names}, whose job names it"
        do = "change or delete these first, or give --force"
        raise RegistryError(asked, found, do)
    return users


def _deploy(arguments: argparse.Namespace, _settings: StoreSettings) -> Answer:
    # Importing Prefect takes a second, which other commands need not wait for.
    from flows.run_answers import deploy

    return deploy(arguments)


def _row(record: Record) -> tuple[str, ...]:
    cells = (record.created, _what(record), _where(record), record.description)
    return (str(record), *map(_clean, cells))


def _clean(text: str) -> str:
    """Return the first line of a text, without characters that would change the terminal."""
    first, *others = text.strip().splitlines() or ["-"]
    return f"{printable(first)} ..." if others else printable(first)


def _what(record: Record) -> str:
    """Say how much a version is."""
    data = cast(SavedAlgorithm | SavedDataset | SavedModel, record)
    if isinstance(data, SavedAlgorithm):
        size = format_size(data.size_bytes)
        return (
            f"1 file, {size}" if data.num_entries == 1 else f"{data.num_entries:,} entries, {size}"
        )
    if data.num_files is None or data.size_bytes is None:
        return "not read"
    return f"{counted(data.num_files, 'file')}, {format_size(data.size_bytes)}"


def _where(record: Record) -> str:
    data = cast(SavedAlgorithm | SavedDataset | SavedModel, record)
    return data.definition.code.url if isinstance(data, SavedAlgorithm) else data.url
