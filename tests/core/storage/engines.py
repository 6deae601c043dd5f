"""The engines behind ``s3://``, and what makes their patience fit into a test."""

import pytest
from botocore.retries.standard import ExponentialBackoff

from trainjob.storage import s3_client, s3_transfer
from trainjob.storage.curl import (
    arriving_file,
    handle,
    large_file,
    objects,
    reading,
    retry,
    upload,
)

ENGINES = ("curl", "s3fs")


def use_engine(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """Let stores of ``s3://`` that are opened from now on have this engine."""
    if engine == "s3fs":
        monkeypatch.setenv("TRAINJOB_STORAGE_ENGINE", "fsspec")


def shorten_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let both engines wait for next to nothing before they ask again."""
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(s3_transfer, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.001)


def shorten_parts(monkeypatch: pytest.MonkeyPatch, part_bytes: int) -> None:
    """Let both engines move what is larger than this in parts of this size.

    S3 takes no part of an upload below 5 MiB.
    """
    for module in (s3_transfer, upload):
        monkeypatch.setattr(module, "MULTIPART_BYTES", part_bytes)
    for module in (s3_transfer, large_file, objects, arriving_file):
        monkeypatch.setattr(module, "PART_BYTES", part_bytes)
    monkeypatch.setattr(reading, "RANGE_BYTES", part_bytes)


def shorten_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let both engines give an answer up that does not go on, or hardly, for a second."""
    monkeypatch.setattr(handle, "STALL_S", 1)
    monkeypatch.setattr(s3_client, "READ_TIMEOUT_S", 1)
