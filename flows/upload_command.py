"""``python -m flows upload FOLDER URL``: bring a folder to a store, proved, with a receipt.

Nothing is printed here: the command returns an answer, which `flows.__main__` shows.
"""

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any, cast

from flows.cache_command import Answer
from trainjob.errors import StoreError, StoreNotFound
from trainjob.storage.failures import failure, local_failures
from trainjob.storage.listing import Listing
from trainjob.storage.local_tree import list_folder
from trainjob.storage.settings import StoreSettings
from trainjob.storage.upload import upload_tree
from trainjob.values import counted, format_size, lacks_a_slash


def add_upload_command(commands: Any) -> argparse.ArgumentParser:
    """Add ``upload`` to the command line, and return its parser.

    Args:
        commands: What ``add_subparsers`` of the parser returned. ``answer`` of its arguments will
            be a function that takes them and settings of a store, and returns an `Answer`.
    """
    upload = commands.add_parser("upload", help="bring a folder to a store, proved")
    upload.add_argument("folder", type=Path, metavar="FOLDER", help="a folder of this machine")
    upload.add_argument("url", metavar="URL", help="an empty folder or s3://bucket/prefix/")
    upload.add_argument("--store", metavar="NAME", help="ObjectStore block; else AWS_* variables")
    upload.add_argument("--json", action="store_true", help="print one JSON object")
    upload.set_defaults(answer=_upload)
    return cast(argparse.ArgumentParser, upload)


def whole_url(text: str) -> str:
    """Return the url that a person typed, or the whole path.

    Raises:
        StoreError: If it looks like a url and would be taken for a path.
    """
    if lacks_a_slash(text):
        found = "one slash behind the colon, by which it is a path of this machine"
        raise failure(StoreError, text, found, "write // there, or ./ before a path")
    return text if "://" in text else str(Path(text).absolute())


def _upload(arguments: argparse.Namespace, settings: StoreSettings) -> Answer:
    # A link that a person names is the folder that is meant, unlike one in the place of an output.
    folder = Path(os.path.realpath(arguments.folder))
    with local_failures(str(folder)):
        listing = list_folder(folder)
    if not listing.files:
        found = "no file in it" if folder.is_dir() else "no such folder"
        raise failure(StoreNotFound, str(folder), found, "give the folder that holds the files")
    url = whole_url(arguments.url)
    facts = {"uploaded_from": str(folder)}
    receipt = upload_tree(
        folder, url, settings, run_id=_id_of(folder, listing), facts=facts, label=folder.name
    )
    size_bytes = sum(file.size_bytes for file in receipt.files)
    size = f"{counted(len(receipt.files), 'file')}, {format_size(size_bytes)}"
    data = {"url": url, "num_files": len(receipt.files), "size_bytes": size_bytes}
    return Answer(f"uploaded {size} to {url}, verified", data)


def _id_of(folder: Path, listing: Listing) -> str:
    """Return what marks the upload: the same for the same files, so that it goes on if broken off.

    What a changed folder finds at the url is that of another upload, and is not replaced.
    """
    files = sorted((file.path, file.size_bytes, file.version) for file in listing.files)
    text = json.dumps([str(folder), files, sorted(listing.folders)])
    return f"upload-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
