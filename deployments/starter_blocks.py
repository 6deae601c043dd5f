"""The block types of trainjob, and the flavors of this machine's ``flavors.yaml`` as blocks."""

from collections.abc import Iterator
from typing import Any

from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.client.schemas.objects import BlockDocument
from prefect.exceptions import ObjectNotFound

from blocks.flavor import FlavorBlock, block_name, flavor_line, flavor_values
from blocks.object_store import ObjectStore
from blocks.saved_versions import all_of_type, create_block
from deployments.changes import Change
from trainjob.flavor_catalogue import flavors_of
from trainjob.registry.folder import registry_of_machine


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
    wanted = flavors_of(registry_of_machine().place).flavors.values()
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
