"""Unpacking datasets: exact, with every digest, as a whole or not at all."""

import hashlib
import random
import shutil
import stat
import struct
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from tests.core.storage.archives import (
    SUFFIXES,
    TARS,
    archive_of,
    archive_of_one_huge_file,
    compressed,
    entry,
    tar_with,
    zip_with_names,
)
from trainjob.errors import StoreError, StoreNotFound, StoreUnavailable
from trainjob.events import Event, Transferred, listening
from trainjob.storage import meter
from trainjob.storage.deadline import Deadline, ending_at
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter
from trainjob.storage.unpack import is_dataset_archive, unpack_dataset

TREE = {
    "train/3/0001.png": random.Random(1).randbytes(3000),
    "train/3/0002.png": b"",
    "ümlaut und leer/数据.bin": "größe".encode(),
    "large.bin": random.Random(2).randbytes(3 << 20),
    "a" * 255: b"longest part",
    "/".join(["deep"] * 60): b"a path that needs a long name in a tar",
}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def unpack(archive: Path, target: Path, names: str = "utf-8") -> list[FileRecord]:
    return unpack_dataset(archive, archive.name, target, names, Meter(None, ()))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_unpacks_to_the_same_tree_with_its_digests(
    suffix, tmp_path, target, read_tree
) -> None:
    archive = archive_of(tmp_path / f"data{suffix}", TREE)

    records = unpack(archive, target)

    assert read_tree(target) == TREE
    assert records == [
        FileRecord(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in TREE.items()
    ]


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("suffix", TARS)
def test_long_names_of_both_formats_arrive(suffix, format_, tmp_path, target, read_tree) -> None:
    members = [(entry(name), data) for name, data in TREE.items()]
    archive = tar_with(tmp_path / f"data{suffix}", members, format_=format_)

    unpack(archive, target)

    assert read_tree(target) == TREE


@pytest.mark.parametrize(
    ("path", "is_archive"),
    [
        *((f"s3://b/data{suffix}", True) for suffix in SUFFIXES),
        ("DATA.ZIP", True),
        ("data.tar.bz2", False),
        ("data.zip/", False),
        ("shard-000.tar.idx", False),
        ("zip", False),
    ],
)
def test_an_archive_is_known_by_its_ending(path: str, is_archive: bool) -> None:
    assert is_dataset_archive(path) == is_archive


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.zst"])
def test_modes_are_kept_as_far_as_executable_or_not(suffix, tmp_path, target) -> None:
    modes = {"run.sh": 0o4777, "data": 0o604, "locked": 0o000}
    archive = tmp_path / f"data{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for name, mode in modes.items():
                listed = zipfile.ZipInfo(name)
                listed.external_attr = (stat.S_IFREG | mode) << 16
                packed.writestr(listed, b"x")
    else:
        infos = [entry(name) for name in modes]
        for info in infos:
            info.mode = modes[info.name]
        tar_with(archive, [(info, b"x") for info in infos])

    unpack(archive, target)

    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in target.iterdir()}
    assert found == {"run.sh": 0o755, "data": 0o644, "locked": 0o644}


@pytest.mark.parametrize("suffix", TARS)
def test_empty_folders_and_names_that_start_with_a_dot_slash(suffix, tmp_path, target) -> None:
    members = [
        (entry("./", tarfile.DIRTYPE), b""),
        (entry("./a/file"), b"1"),
        (entry("./a/", tarfile.DIRTYPE), b""),
        (entry("./empty//", tarfile.DIRTYPE), b""),
    ]

    records = unpack(tar_with(tmp_path / f"data{suffix}", members), target)

    assert [record.path for record in records] == ["a/file"]
    assert (target / "empty").is_dir()


@pytest.mark.parametrize("suffix", [".tar", ".tar.zst"])
def test_a_sparse_file_of_gnu_tar_has_its_holes_filled(suffix, tmp_path, target) -> None:
    # As GNU tar writes it: 8 bytes at 1024 of a file of 2048, and nothing else.
    header = bytearray(entry("sparse", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"00000000010\0"  # 8 bytes of data
    header[386:410] = b"00000002000\0" + b"00000000010\0"
    header[483:495] = b"00000004000\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    plain = bytes(header) + b"contents".ljust(512, b"\0") + bytes(1024)

    unpack(compressed(tmp_path / f"data{suffix}", plain), target)

    assert (target / "sparse").read_bytes() == bytes(1024) + b"contents" + bytes(1016)


@pytest.mark.skipif(shutil.which("tar") is None, reason="tar is not installed")
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_sparse_files_of_the_real_tar_arrive_whole(suffix, form, tmp_path, target) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        for position in (1 << 20, 3 << 20):
            file.seek(position)
            file.write(b"content")
        file.truncate(5 << 20)
    archive = tmp_path / f"data{suffix}"
    command = ["tar", "--sparse", f"--format={form}", "-caf", str(archive), "sparse"]
    subprocess.run(command, cwd=tmp_path, check=True)

    unpack(archive, target)

    assert (target / "sparse").read_bytes() == (tmp_path / "sparse").read_bytes()


def test_a_streamed_zip64_has_sizes_behind_the_content(tmp_path, target) -> None:
    archive = tmp_path / "data.zip"
    with archive.open("wb") as file:
        stream = _Unseekable(file)
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:  # type: ignore[call-overload]
            for i in range(3):
                with packed.open(f"{i}", "w", force_zip64=True) as member:
                    member.write(b"x" * 1000 * i)

    records = unpack(archive, target)

    assert [record.size_bytes for record in records] == [0, 1000, 2000]


class _Unseekable:
    """A pipe, for example: what stands before the content cannot be filled in later."""

    def __init__(self, file) -> None:
        self.write, self.flush = file.write, file.flush


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_progress_counts_what_is_unpacked(suffix, tmp_path, target, monkeypatch) -> None:
    monkeypatch.setattr(meter, "_INTERVAL_S", 0)
    archive = archive_of(tmp_path / f"data{suffix}", TREE)
    events: list[Event] = []

    with listening(events.append):
        unpack_dataset(archive, "data", target, "utf-8", Meter("unpack data"))

    size_bytes = sum(map(len, TREE.values()))
    totals = (len(TREE), size_bytes)
    assert events[-1] == Transferred("unpack data", len(TREE), totals[0], size_bytes, totals[1])
    (first, *_) = events
    assert isinstance(first, Transferred)
    # What a compressed tar holds is not known before it is read to its end.
    known = totals if suffix in (".zip", ".tar") else (None, None)
    assert (first.total_files, first.total_bytes) == known


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_deadline_breaks_it_off_and_leaves_nothing(suffix, tmp_path, target) -> None:
    archive = archive_of(tmp_path / f"data{suffix}", TREE)

    with ending_at(Deadline(0)), pytest.raises(StoreUnavailable, match="in the time that was left"):
        unpack(archive, target)

    assert not target.exists()


def test_an_archive_that_is_not_there_is_not_found(tmp_path, target) -> None:
    with pytest.raises(StoreNotFound, match=r"data\.zip: no such file; check the path"):
        unpack(tmp_path / "data.zip", target)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_without_a_file_is_refused(suffix, tmp_path, target) -> None:
    archive = archive_of(tmp_path / f"data{suffix}", {})

    with pytest.raises(StoreError, match="an archive without a file; put the files into it"):
        unpack(archive, target)

    assert not target.exists()


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_what_does_not_fit_the_disk_is_refused_before_anything_is_written(
    suffix, tmp_path, target
) -> None:
    asked: list[int] = []

    def reserve(size_bytes: int) -> None:
        asked.append(size_bytes)
        assert list(target.iterdir()) == []
        raise StoreError("no room")

    archive = archive_of(tmp_path / f"data{suffix}", TREE)
    with pytest.raises(StoreError, match="no room"):
        unpack_dataset(archive, archive.name, target, "utf-8", Meter(None, ()), reserve=reserve)

    assert asked[0] >= sum(map(len, TREE.values()))
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.zst"])
def test_what_is_larger_than_the_disk_is_refused(suffix, tmp_path, target) -> None:
    archive = archive_of_one_huge_file(tmp_path / f"data{suffix}", 1 << 46)

    with pytest.raises(StoreError, match=r"free for 64(\.0)? TiB of files; make space"):
        unpack_dataset(archive, "data", target, "utf-8", Meter(None, ()), any_ratio=True)

    assert not target.exists()


GBK = ["训练/图像.png", "测试/图像.png"]


def test_names_of_a_chinese_windows_are_read_when_one_says_so(tmp_path, target, read_tree) -> None:
    archive = zip_with_names(tmp_path / "data.zip", [name.encode("gbk") for name in GBK])

    unpack(archive, target, names="gbk")

    assert sorted(read_tree(target)) == sorted(GBK)


def test_names_that_are_not_utf_8_are_refused_with_how_they_read(tmp_path, target) -> None:
    archive = zip_with_names(tmp_path / "data.zip", [name.encode("gbk") for name in GBK])

    with pytest.raises(StoreError, match="is not UTF-8") as caught:
        unpack(archive, target)

    assert "; say how its names are written, as archive_names: gbk (reads '训练/图像.png')" in str(
        caught.value
    )
    assert not target.exists()


def test_names_in_utf_8_are_read_though_nothing_marks_them(tmp_path, target, read_tree) -> None:
    archive = zip_with_names(tmp_path / "data.zip", ["数据.png".encode()])

    unpack(archive, target)

    assert list(read_tree(target)) == ["数据.png"]


def test_a_name_in_utf_8_beside_the_other_one_is_taken(tmp_path, target, read_tree) -> None:
    """As WinRAR and Info-ZIP write it; without the right checksum it is of another name."""
    raw = "图.png".encode("gbk")
    field = struct.pack("<BL", 1, zlib.crc32(raw)) + "图.png".encode()
    extra = struct.pack("<HH", 0x7075, len(field)) + field
    archive = zip_with_names(tmp_path / "data.zip", [raw], extra)

    unpack(archive, target)

    assert list(read_tree(target)) == ["图.png"]


def test_names_of_an_old_tar_are_read_in_the_encoding_that_one_says(
    tmp_path, target, read_tree
) -> None:
    name = "图像.png".encode("gbk").decode("utf-8", "surrogateescape")
    archive = tar_with(tmp_path / "a.tar", [(entry(name), b"1")], format_=tarfile.GNU_FORMAT)

    unpack(archive, target, names="gbk")

    assert list(read_tree(target)) == ["图像.png"]
