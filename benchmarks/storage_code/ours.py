"""What a job does with its data: ``ours.py down|job|up|list URL FOLDER``; prints JSON.

``put``, ``same``, ``make`` and ``drop`` are for the benchmark itself.
"""

import base64
import hashlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import trainjob.storage.curl.store  # noqa: F401 - else loaded when a store is opened
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.hold import release
from trainjob.storage.local_tree import list_folder
from trainjob.storage.meter import Meter
from trainjob.storage.settings import StoreSettings
from trainjob.storage.stage import stage_channel
from trainjob.storage.store import open_store

PART_BYTES = 16 << 20
SETTINGS = replace(StoreSettings.from_env(), checksums="when_supported")
"""The store keeps checksums of objects, as that of AWS does."""


def main() -> None:
    """Do it, and say how long it took and what was moved."""
    operation, url, name = sys.argv[1:]
    begun = time.perf_counter()
    said = OPERATIONS[operation](url, Path(name))
    print(json.dumps({"seconds": time.perf_counter() - begun, **said}))


def down(url: str, folder: Path) -> dict[str, object]:
    """Stage a channel by the cache, as a job does."""
    staged = stage_channel(url, folder, SETTINGS, label="bench", holder=folder.name)
    return {"moved_bytes": staged.moved_bytes, "verified": str(staged.verified)}


def job(url: str, folder: Path) -> dict[str, object]:
    """Stage a channel and let go of it, as a job does at its end; timed is the staging."""
    begun = time.perf_counter()
    said = down(url, folder)
    seconds = time.perf_counter() - begun
    release(Cache.of_machine(), folder.name)
    return {**said, "seconds": seconds}


def up(url: str, folder: Path) -> dict[str, object]:
    """Upload an output, as a job does: proved, and with a receipt."""
    from trainjob.storage.upload import upload_tree  # here, since the others need none of it

    receipt = upload_tree(folder, url, SETTINGS, run_id="bench", facts={}, label="bench")
    return {"files": len(receipt.files)}


def count(url: str, _: Path) -> dict[str, object]:
    """Count what is there."""
    with open_store(url, SETTINGS) as store:
        return {"files": len(store.list_files().files)}


def put(url: str, folder: Path) -> dict[str, object]:
    """Put files there and nothing else, with checksums, as the tools of AWS do."""
    files = list_folder(folder).files
    small = [entry for entry in files if entry.size_bytes <= PART_BYTES]
    with open_store(url, SETTINGS) as store:
        store.upload(folder, small, Meter(None, small))
    for entry in files:
        if entry.size_bytes > PART_BYTES:
            _put_in_parts(url, folder, entry.path)
    return {"files": len(files)}


def same(url: str, folder: Path) -> dict[str, object]:
    """Read all that is there and compare it with the folder."""
    with open_store(url, SETTINGS) as store:
        files = [entry for entry in store.list_files().files if not _is_ours(entry.path)]
        there = {record.path: record.sha256 for record in store.digest(files, Meter(None, files))}
    here = {
        entry.path: hashlib.sha256((folder / entry.path).read_bytes()).hexdigest()
        for entry in list_folder(folder).files
    }
    if there != here:
        sys.exit(f"not the same: {len(there)} files there, {len(here)} here")
    return {"files": len(here)}


def make(url: str, _: Path) -> dict[str, object]:
    """Make the bucket."""
    _client().create_bucket(Bucket=_bucket(url))
    return {}


def drop(url: str, _: Path) -> dict[str, object]:
    """Delete the bucket with all that it holds, which this store does at once."""
    _client().delete_bucket(Bucket=_bucket(url))
    return {}


OPERATIONS = {
    "down": down,
    "job": job,
    "up": up,
    "list": count,
    "put": put,
    "same": same,
    "make": make,
    "drop": drop,
}


def _put_in_parts(url: str, folder: Path, path: str) -> None:
    """Put a large file, with a checksum of the whole."""
    from anycrc import Model  # here, as above

    client, crc_of = _client(), Model("CRC64-NVME").calc
    key = {"Bucket": _bucket(url), "Key": f"{url.removeprefix('s3://').partition('/')[2]}{path}"}
    begun = client.create_multipart_upload(
        **key, ChecksumAlgorithm="CRC64NVME", ChecksumType="FULL_OBJECT"
    )
    upload = {**key, "UploadId": begun["UploadId"]}
    parts: list[dict[str, Any]] = []
    with (folder / path).open("rb") as file:
        while data := file.read(PART_BYTES):
            number = {"PartNumber": len(parts) + 1}
            crc = base64.b64encode(crc_of(data, 0).to_bytes(8)).decode()
            sent = client.upload_part(**upload, **number, Body=data, ChecksumCRC64NVME=crc)
            parts.append(number | {"ETag": sent["ETag"], "ChecksumCRC64NVME": crc})
    client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})


def _client() -> Any:
    import botocore.session  # here, since it is no part of what is measured

    return botocore.session.Session().create_client("s3")


def _bucket(url: str) -> str:
    return url.removeprefix("s3://").partition("/")[0]


def _is_ours(path: str) -> bool:
    return path == "_SUCCESS" or path.startswith("_trainjob/")


if __name__ == "__main__":
    main()
