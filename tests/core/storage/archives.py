"""Makes archives for tests, good and hostile ones, and has them refused."""

import gzip
import io
import random
import struct
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import zstandard

from trainjob.errors import StoreError, UnsafeKey
from trainjob.storage.meter import Meter
from trainjob.storage.unpack import unpack_dataset

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst")
TARS = SUFFIXES[1:]

GOOD = {"good/1.png": random.Random(1).randbytes(2000), "good/2.png": b"2"}

Member = tuple[tarfile.TarInfo, bytes]


def archive_of(file: Path, tree: dict[str, bytes]) -> Path:
    """Pack `tree` into an archive of the kind that its name says."""
    if file.suffix == ".zip":
        return zip_of(file, tree)
    return tar_with(file, [(tarfile.TarInfo(name), data) for name, data in tree.items()])


def zip_of(file: Path, tree: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in tree.items():
            archive.writestr(name, data)
    return file


def tar_with(file: Path, members: Iterable[Member], *, format_: int = tarfile.PAX_FORMAT) -> Path:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=format_) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return compressed(file, plain.getvalue())


def compressed(file: Path, plain: bytes) -> Path:
    """Write the bytes of a tar as the name of the file says."""
    if file.name.endswith(".zst"):
        plain = zstandard.ZstdCompressor(write_checksum=True).compress(plain)
    elif not file.name.endswith(".tar"):
        plain = gzip.compress(plain)
    file.write_bytes(plain)
    return file


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_with_names(file: Path, names: Iterable[bytes], extra: bytes = b"") -> Path:
    """Pack a zip whose names are these bytes, not marked as UTF-8, as Windows does."""
    raw = list(names)
    with zipfile.ZipFile(file, "w") as archive:
        for i, name in enumerate(raw):
            info = zipfile.ZipInfo(f"{i}".rjust(len(name), "_"))
            info.extra = extra
            archive.writestr(info, f"{i}")
    data = file.read_bytes()
    for i, name in enumerate(raw):
        data = data.replace(f"{i}".rjust(len(name), "_").encode(), name)
    file.write_bytes(data)
    return file


def archive_of_one_huge_file(file: Path, size_bytes: int) -> Path:
    """Declare a size that is not there."""
    if file.suffix != ".zip":
        info = entry("huge")
        info.size = size_bytes
        return compressed(file, info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("huge", b"")
        archive.getinfo("huge").file_size = size_bytes
    return file


def refusal(archive: Path, kind: type[StoreError] = UnsafeKey) -> str:
    """Have the archive refused, prove that nothing is left of it, and return the message."""
    folder = archive.parent
    before = set(folder.rglob("*"))
    with pytest.raises(StoreError) as caught:
        unpack_dataset(archive, "s3://b/data", folder / "target", "utf-8", Meter(None, ()))
    assert set(folder.rglob("*")) == before
    assert type(caught.value) is kind
    return str(caught.value)


def set_in_table(archive: Path, offset: int, form: str, value: int) -> None:
    """Change a field of the first member in the table of contents of a zip."""
    data = bytearray(archive.read_bytes())
    struct.pack_into(form, data, data.index(b"PK\x01\x02") + offset, value)
    archive.write_bytes(data)
