"""Saved settings of an object store. A job names such a block; only tasks and checks load it.

Secrets stay in Prefect's database: parameters of a run can be read by every user of the API.
"""

from dataclasses import fields
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

from httpx import HTTPError, HTTPStatusError
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import BlockDocument
from prefect.exceptions import ObjectNotFound
from pydantic import ConfigDict, SecretStr

from trainjob.errors import JobError, Problem, StoreUnavailable
from trainjob.storage.settings import StoreSettings


class ObjectStore(Block):
    """How to reach an S3-compatible object store. Jobs name it as their `store`."""

    _block_type_name = "Object Store"
    _block_type_slug = "object-store"
    _description = "How to reach an S3-compatible object store. Jobs name it as their `store`."

    model_config = ConfigDict(use_attribute_docstrings=True)

    endpoint_url: str | None = None
    """Address of the store, such as `https://obs.cn-north-4.myhuaweicloud.com`; absent: AWS."""

    region: str | None = None
    """Region to sign for, such as `cn-north-4`."""

    access_key: str | None = None
    """Access key id; absent: what the worker's machine is allowed to do."""

    secret_key: SecretStr | None = None
    """Secret access key."""

    session_token: SecretStr | None = None
    """Token of temporary credentials."""

    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """Whether the bucket stands in the path or in the host name; OBS, COS and OSS need virtual."""

    checksums: Literal["when_required", "when_supported"] = "when_required"
    """When to use the newer S3 checksums; OBS, COS, OSS and older MinIO need when_required. With
    when_supported every object that is written in one request carries its sha256, and large files,
    and what is read, are compared with the checksum that the store keeps, for which AWS is asked
    either way."""

    ca_bundle: Path | None = None
    """File on the worker with the certificates to trust instead of the usual ones."""

    def to_settings(self) -> StoreSettings:
        """Return the settings as the core takes them; what a form left empty is absent."""
        values = {field.name: getattr(self, field.name) for field in fields(StoreSettings)}
        return StoreSettings(**{name: _revealed(value) for name, value in values.items() if value})


def _revealed(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def load_settings(store: str | None) -> StoreSettings:
    """Return the settings of the saved block `store`; of the AWS_* environment for None.

    Raises:
        JobError: If no such block is saved, naming those that are.
        StoreUnavailable: If the server of Prefect does not answer.
    """
    if store is None:
        return StoreSettings.from_env()
    try:
        with get_client(sync_client=True) as client:
            document = _read_document(client, store)
    except HTTPError as error:
        raise StoreUnavailable(
            f"asked Prefect's server for the saved store {store!r}, found no answer ({error}); "
            "try again when the server is there"
        ) from error
    # Not Block.load: it returns a coroutine when a loop happens to run in this thread.
    return ObjectStore.model_validate(document.data).to_settings()


def _read_document(client: SyncPrefectClient, store: str) -> BlockDocument:
    slug = ObjectStore.get_block_type_slug()
    try:
        return client.read_block_document_by_name(store, slug)
    except ObjectNotFound as error:
        raise _unknown(store, saved_names(client, slug)) from error


def saved_names(client: SyncPrefectClient, slug: str) -> list[str]:
    """Return the names of all saved blocks of a type, in their order."""
    try:
        documents = client.read_block_documents_by_type(slug, include_secrets=False)
    except HTTPStatusError as error:
        if error.response.status_code == HTTPStatus.NOT_FOUND:  # no such block was ever saved
            return []
        raise
    return sorted(document.name for document in documents if document.name)


def _unknown(store: str, known: list[str]) -> JobError:
    found = f"only {', '.join(map(repr, known))}" if known else "no saved store"
    do = (
        "save it, in Python with "
        f"`blocks.object_store.ObjectStore(endpoint_url=..., access_key=..., secret_key=...)"
        f".save({store!r})` or as a block in Prefect's UI, or leave store out"
    )
    return JobError("store", [Problem("store", f"the saved store {store!r}", found, do)])
