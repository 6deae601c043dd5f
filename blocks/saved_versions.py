"""Saved algorithms, datasets and models as Prefect blocks, where people see them in the UI.

Version 3 of the dataset ``digits`` is the block ``digits-v3`` of the type Saved Dataset. It holds
what `trainjob.registry` says it is; nothing is decided here. A name of a block is there once, so
that of two processes that save at once each gets a number of its own.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any, cast
from uuid import UUID

from httpx import HTTPError, HTTPStatusError
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import BlockDocumentCreate, BlockDocumentUpdate
from prefect.client.schemas.objects import BlockDocument
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from pydantic import ConfigDict

from trainjob.errors import StoreUnavailable
from trainjob.registry.records import Kind, RegistryError

_BLOCK_NAME = re.compile(r"(.+)-v([1-9][0-9]*)")
_PREFECT_NAME = re.compile(r"[a-z0-9-]+")
_PAGE = 200  # what Prefect's server gives at most


class SavedVersion(Block):
    """What the blocks of all kinds have in common."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    record: dict[str, Any]
    """What `python -m flows KIND show` prints. It must not be changed: save a new version."""


class SavedAlgorithmBlock(SavedVersion):
    """A version of an algorithm. Jobs name it as their `algorithm`."""

    _block_type_name = "Saved Algorithm"
    _block_type_slug = "saved-algorithm"


class SavedDatasetBlock(SavedVersion):
    """A version of a dataset. Inputs of jobs name it as their `dataset`."""

    _block_type_name = "Saved Dataset"
    _block_type_slug = "saved-dataset"


class SavedModelBlock(SavedVersion):
    """A version of a model. Inputs of jobs name it as their `model`."""

    _block_type_name = "Saved Model"
    _block_type_slug = "saved-model"


_BLOCKS: dict[Kind, type[SavedVersion]] = {
    "algorithm": SavedAlgorithmBlock,
    "dataset": SavedDatasetBlock,
    "model": SavedModelBlock,
}


class BlockPlace:
    """The blocks of Prefect's server as the place of a `trainjob.registry.registry.Registry`."""

    def __str__(self) -> str:
        """Return what people call the place."""
        return "the blocks of Prefect"

    def names(self, kind: Kind) -> list[str]:
        """Return all names of which there are blocks."""
        return sorted({name for name, _ in self._versions(kind)})

    def numbers(self, kind: Kind, name: str) -> list[int]:
        """Return all numbers of the blocks of a name, in order."""
        return sorted(number for other, number in self._versions(kind) if other == name)

    def read(self, kind: Kind, name: str, number: int) -> Any:
        """Return the values of a version; None if somebody deleted it meanwhile."""
        try:
            return self._document(kind, name, number).data.get("record")
        except ObjectNotFound:
            return None

    def create(self, kind: Kind, name: str, number: int, values: dict[str, Any]) -> None:
        """Save a block.

        Raises:
            FileExistsError: If there is one of that name.
            RegistryError: If a block cannot have the name.
        """
        if not _PREFECT_NAME.fullmatch(name):
            found = "other characters than small letters, digits and -"
            raise RegistryError(f"{name!r} in {self}", found, "choose another name")
        with _server() as client:
            type_id, schema_id = _registered(_BLOCKS[kind])
            document = BlockDocumentCreate(
                name=f"{name}-v{number}",
                data={"record": values},
                block_type_id=type_id,
                block_schema_id=schema_id,
            )
            try:
                client.create_block_document(document)
            except ObjectAlreadyExists as error:
                raise FileExistsError(document.name) from error

    def replace(self, kind: Kind, name: str, number: int, values: dict[str, Any]) -> None:
        """Save other values in a block that is there."""
        update = BlockDocumentUpdate(data={"record": values}, merge_existing_data=False)
        document = self._document(kind, name, number)
        with _server() as client:
            client.update_block_document(document.id, update)

    def _document(self, kind: Kind, name: str, number: int) -> BlockDocument:
        slug = _BLOCKS[kind].get_block_type_slug()
        with _server() as client:
            return client.read_block_document_by_name(f"{name}-v{number}", slug)

    def _versions(self, kind: Kind) -> list[tuple[str, int]]:
        """Return name and number of all versions; other blocks of the type are none of ours."""
        slug = _BLOCKS[kind].get_block_type_slug()
        with _server() as client:
            names = [document.name or "" for document in _all_of_type(client, slug)]
        matches = (_BLOCK_NAME.fullmatch(name) for name in names)
        return [(match[1], int(match[2])) for match in matches if match]


@contextmanager
def _server() -> Iterator[SyncPrefectClient]:
    """Give a client; what it says of the server is an error of ours."""
    try:
        with get_client(sync_client=True) as client:
            yield client
    except HTTPError as error:
        raise StoreUnavailable(
            f"asked Prefect's server for saved versions, found no answer ({error}); "
            "try again when the server is there"
        ) from error


def _all_of_type(client: SyncPrefectClient, slug: str) -> Iterator[BlockDocument]:
    offset = 0
    while True:
        try:
            page = client.read_block_documents_by_type(slug, offset=offset, limit=_PAGE)
        except HTTPStatusError as error:
            if error.response.status_code == HTTPStatus.NOT_FOUND:  # none was ever saved
                return
            raise
        yield from page
        if len(page) < _PAGE:
            return
        offset += _PAGE


def _registered(block: type[SavedVersion]) -> tuple[UUID, UUID]:
    """Return the ids of the type and schema of a block, which the server has from now on."""
    with suppress(ObjectAlreadyExists):  # another process registers it at this moment
        block.register_type_and_schema()
    if block._block_schema_id is None:
        block.register_type_and_schema()
    return cast(UUID, block._block_type_id), cast(UUID, block._block_schema_id)
