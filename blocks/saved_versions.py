"""Saved algorithms, datasets and models as Prefect blocks, where people see them in the UI.

Version 3 of the dataset ``digits`` is the block ``digits-v3`` of the type Saved Dataset. It holds
what `trainjob.registry` says it is; nothing is decided here. A name of a block is there once, so
that of two processes that save at once each gets a number of its own. The variable
``trainjob-last-dataset-digits`` holds the highest number that was given, for when somebody deletes
a block in the UI; the files of a fingerprint are listed in a block of the type Saved Files.
"""

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from typing import Any, cast
from uuid import UUID

from httpx import HTTPError, HTTPStatusError
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    BlockDocumentCreate,
    BlockDocumentUpdate,
    VariableCreate,
    VariableUpdate,
)
from prefect.client.schemas.objects import BlockDocument
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from pydantic import ConfigDict

from blocks.flavor import FlavorBlock, flavor_line
from trainjob.errors import StoreUnavailable
from trainjob.registry.records import Kind, RegistryError
from trainjob.registry.registry import Kept, KeptFlavors

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


class SavedFilesBlock(Block):
    """The list of the files with one fingerprint, which versions of the same data share."""

    _block_type_name = "Saved Files"
    _block_type_slug = "saved-files"

    packed: str
    """What `python -m flows dataset show --files` lists: base64 of gzip of one JSON list a file."""


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

    def versions(self, kind: Kind, name: str | None = None) -> list[Kept]:
        """Return all versions of a name, or of all names, by name and number.

        One request brings 200 of them with their values; a request a version would take minutes.
        """
        found = []
        slug = _BLOCKS[kind].get_block_type_slug()
        with _server() as client:
            for document in all_of_type(client, slug):
                # Other blocks of the type are none of ours.
                match = _BLOCK_NAME.fullmatch(document.name or "")
                if match and name in (None, match[1]):
                    read = partial(document.data.get, "record")
                    found.append(Kept(match[1], int(match[2]), read))
        return sorted(found, key=lambda kept: (kept.name, kept.number))

    def last_number(self, kind: Kind, name: str) -> int:
        """Return the highest number that was ever given; 0 if there was none."""
        numbers = [kept.number for kept in self.versions(kind, name)]
        with _server() as client:
            return max([*numbers, _noted_number(client, kind, name)])

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
            _note_number(client, kind, name, number)
            create_block(client, _BLOCKS[kind], f"{name}-v{number}", {"record": values})

    def replace(self, kind: Kind, name: str, number: int, values: dict[str, Any]) -> None:
        """Save other values in a block that is there."""
        update = BlockDocumentUpdate(data={"record": values}, merge_existing_data=False)
        document = self._document(kind, name, number)
        with _server() as client:
            client.update_block_document(document.id, update)

    def keep_files(self, key: str, packed: bytes) -> None:
        """Save the list of the files with a fingerprint; what is there already stays."""
        data = {"packed": base64.b64encode(packed).decode()}
        with _server() as client, suppress(FileExistsError):
            create_block(client, SavedFilesBlock, _files_name(key), data)

    def files_of(self, key: str) -> bytes | None:
        """Return what was kept for a fingerprint; None if nothing was."""
        slug = SavedFilesBlock.get_block_type_slug()
        with _server() as client:
            try:
                document = client.read_block_document_by_name(_files_name(key), slug)
            except ObjectNotFound:
                return None
        return base64.b64decode(str(document.data.get("packed")))

    def flavors(self) -> KeptFlavors:
        """Return what the blocks of the type Flavor say."""
        with _server() as client:
            documents = all_of_type(client, FlavorBlock.get_block_type_slug())
            lines = [flavor_line(document.data) for document in documents]
        return KeptFlavors(f"{self} of the type Flavor", lines)

    def _document(self, kind: Kind, name: str, number: int) -> BlockDocument:
        slug = _BLOCKS[kind].get_block_type_slug()
        with _server() as client:
            return client.read_block_document_by_name(f"{name}-v{number}", slug)


def _files_name(key: str) -> str:
    return key.replace(":", "-")


def _number_variable(kind: Kind, name: str) -> str:
    return f"trainjob-last-{kind}-{name}"


def _noted_number(client: SyncPrefectClient, kind: Kind, name: str) -> int:
    variable = client.read_variable_by_name(_number_variable(kind, name))
    return variable.value if variable and isinstance(variable.value, int) else 0


def _note_number(client: SyncPrefectClient, kind: Kind, name: str, number: int) -> None:
    """Note that a number is given, before its block is there, which may be deleted at once."""
    variable = _number_variable(kind, name)
    try:
        client.create_variable(VariableCreate(name=variable, value=number))
    except ObjectAlreadyExists:
        client.update_variable(VariableUpdate(name=variable, value=number))


def create_block(
    client: SyncPrefectClient, block: type[Block], name: str, data: dict[str, Any]
) -> None:
    """Save a block under a name.

    Raises:
        FileExistsError: If there is one of that name.
    """
    type_id, schema_id = _registered(block)
    document = BlockDocumentCreate(
        name=name, data=data, block_type_id=type_id, block_schema_id=schema_id
    )
    try:
        client.create_block_document(document)
    except ObjectAlreadyExists as error:
        raise FileExistsError(name) from error


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


def all_of_type(client: SyncPrefectClient, slug: str) -> Iterator[BlockDocument]:
    """Yield all saved blocks of a type, which the server need not know."""
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


def _registered(block: type[Block]) -> tuple[UUID, UUID]:
    """Return the ids of the type and schema of a block, which the server has from now on."""
    with suppress(ObjectAlreadyExists):  # another process registers it at this moment
        block.register_type_and_schema()
    if block._block_schema_id is None:
        block.register_type_and_schema()
    return cast(UUID, block._block_type_id), cast(UUID, block._block_schema_id)
