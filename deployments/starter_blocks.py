"""The block types of trainjob, and blocks made of what this machine says.

These are the flavors of its ``flavors.yaml`` and, if asked for, a store of its AWS_* variables.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.client.schemas.objects import BlockDocument
from prefect.exceptions import ObjectNotFound

from blocks.flavor import FlavorBlock, block_name, flavor_line, flavor_values
from blocks.object_store import ObjectStore
from blocks.saved_versions import all_of_type, create_block
from deployments.changes import Change
from deployments.flow_deployments import HOME
from trainjob.errors import JobError, TrainjobError
from trainjob.flavor_catalogue import flavors_of
from trainjob.registry.folder import flavors_file, registry_of_machine
from trainjob.storage.failures import local_failures
from trainjob.storage.settings import StoreSettings

_EXAMPLE = HOME / "examples" / "flavors.yaml"
_ADVICE = "its prices are no platform's; change them here, and in the UI those of blocks made of it"
_KEYS = {"access_key": "AWS_ACCESS_KEY_ID", "secret_key": "AWS_SECRET_ACCESS_KEY"}


def register_blocks(client: SyncPrefectClient, *, force: bool) -> Iterator[Change]:
    """Register the block types that people fill in, and save the flavors of this machine.

    Args:
        client: The server to tell.
        force: Whether a block that says something else than the file is replaced.

    Yields:
        What became of each.

    Raises:
        JobError: With all mistakes in the file.
    """
    for block in (ObjectStore, FlavorBlock):
        yield _register_type(client, block)
    catalogue = flavors_of(registry_of_machine().place)
    if catalogue.problems:  # of a file, who registers it is here to correct it
        raise JobError(catalogue.place, catalogue.problems)
    wanted = catalogue.flavors.values()
    if not wanted:
        return
    documents = list(all_of_type(client, FlavorBlock.get_block_type_slug()))
    known = {flavor_line(document.data)[0].lower(): document for document in documents}
    taken = {str(document.name) for document in documents}
    for flavor in wanted:
        called, values, what = flavor.name or flavor.size, flavor_values(flavor), f"flavor {flavor}"
        document = known.get(called.lower())
        if document is None:
            name = block_name(called, taken)
            create_block(client, FlavorBlock, name, values)
            taken.add(name)
            yield Change("created", what)
        elif _says(document, values):
            yield Change("left", what)
        elif force:
            update = BlockDocumentUpdate(data=values, merge_existing_data=False)
            client.update_block_document(document.id, update)
            yield Change("changed", what)
        else:
            why = f"block {document.name!r} says something else than flavors.yaml"
            yield Change("left", what, f"{why}; --force replaces it")


def write_starter_flavors() -> Change:
    """Give a machine without ``flavors.yaml`` that of the examples, to begin with.

    Raises:
        StoreError: If it cannot be written.
    """
    file = flavors_file()
    what = repr(str(file))
    with local_failures(str(file)):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{uuid4().hex}.part")
        try:
            shutil.copyfile(_EXAMPLE, part)
            file.hardlink_to(part)
        except FileExistsError:
            return Change("left", what)
        finally:
            part.unlink(missing_ok=True)
    return Change("created", what, _ADVICE)


def register_store(client: SyncPrefectClient, name: str, *, force: bool) -> Change:
    """Save the store of the AWS_* environment, unless one is saved under the name.

    Args:
        client: The server to tell.
        name: What jobs call it.
        force: Whether one that says something else than the environment is brought in line with it.

    Raises:
        TrainjobError: If it is to be made, and the environment has no keys.
    """
    check_store(client, name)
    what, settings = f"saved store {name!r}", StoreSettings.from_env()
    saved = _saved_store(client, name)
    wanted = settings if saved is None else _updated(saved, settings)
    if saved is not None and (_missing(settings) or saved == wanted):
        return Change("left", what)
    if saved is not None and not force:
        why = "it says something else than AWS_* of the environment; --force replaces it"
        return Change("left", what, why)
    ObjectStore(**vars(wanted)).save(name, overwrite=True)
    return Change("created" if saved is None else "changed", what)


def check_store(client: SyncPrefectClient, name: str) -> None:
    """See that `register_store` can save the store.

    Raises:
        TrainjobError: If it is to be made, and the environment has no keys.
    """
    missing = _missing(StoreSettings.from_env())
    if missing and _saved_store(client, name) is None:
        raise TrainjobError(
            f"asked to save the store {name!r} of AWS_* of the environment, found no "
            f"{' and no '.join(missing)}; set it"
        )


def _missing(settings: StoreSettings) -> list[str]:
    return [variable for key, variable in _KEYS.items() if getattr(settings, key) is None]


def _updated(saved: StoreSettings, settings: StoreSettings) -> StoreSettings:
    """Return what a saved store is to be: what AWS_* do not say, a person may have set."""
    if settings.endpoint_url not in (None, saved.endpoint_url):
        return settings  # of another store, of which nobody has said anything
    chosen = (
        {"checksums"} if saved.addressing_style == "auto" else {"checksums", "addressing_style"}
    )
    given = {
        key: value
        for key, value in vars(settings).items()
        if value is not None and key not in chosen
    }
    # A token belongs to its keys: an old one beside new keys would have every request refused.
    return replace(saved, **{**given, "session_token": settings.session_token})


def _saved_store(client: SyncPrefectClient, name: str) -> StoreSettings | None:
    try:
        document = client.read_block_document_by_name(name, ObjectStore.get_block_type_slug())
    except ObjectNotFound:
        return None
    return ObjectStore.model_validate(document.data).to_settings()


def _says(document: BlockDocument, values: dict[str, Any]) -> bool:
    """Tell whether a block has these values; a form leaves out or empty what there is none of."""
    given = {name: document.data.get(name) for name in values}
    return {name: None if value == "" else value for name, value in given.items()} == values


def _register_type(client: SyncPrefectClient, block: type[Block]) -> Change:
    what = f"block type {block.get_block_type_name()!r}"
    try:
        client.read_block_type_by_slug(block.get_block_type_slug())
    except ObjectNotFound:
        block.register_type_and_schema()
        return Change("created", what)
    try:
        client.read_block_schema_by_checksum(block._calculate_schema_checksum())
    except ObjectNotFound:
        block.register_type_and_schema()
        return Change("changed", what)
    return Change("left", what)
