"""Hostile archives: refused by name, and nothing of them stays anywhere."""

import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.core.storage.archives import (
    GOOD,
    SUFFIXES,
    TARS,
    archive_of,
    archive_of_one_huge_file,
    entry,
    refusal,
    set_in_table,
    tar_with,
    zip_of,
)
from trainjob.errors import StoreError, UnsafeKey
from trainjob.storage.archive_members import Member
from trainjob.storage.archive_tree import Table
from trainjob.storage.meter import Meter
from trainjob.storage.unpack import UNSUSPICIOUS_BYTES, unpack_dataset


def zip_with(file: Path, info: zipfile.ZipInfo, data: bytes = b"x") -> Path:
    zip_of(file, GOOD)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(info, data)
    return file


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../evil.py", "holds .."),
        ("a/../../evil.py", "holds .."),
        ("a/..", "holds .."),
        ("/etc/evil", "is absolute"),
        ("//etc/evil", "is absolute"),
        ("C:/evil", "is absolute"),
        ("..\\evil.py", "holds a backslash"),
        ("x" * 256, "has a part of more than 255 bytes"),
        ("ü" * 128, "has a part of more than 255 bytes"),
        ("/".join(["0123456789"] * 280), "is a path of more than 3,072 bytes"),
        (".", "has no name"),
        ("good", "is both a file and a folder"),
        ("good/1.png", "is there twice"),
        ("./good//1.png", "is there twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_is_refused_by_its_name(suffix, name, reason, tmp_path) -> None:
    if suffix == ".zip":
        archive = zip_with(tmp_path / "data.zip", zipfile.ZipInfo(name))
    else:
        members = [(entry(path), data) for path, data in [*GOOD.items(), (name, b"x")]]
        archive = tar_with(tmp_path / f"data{suffix}", members)

    refused = f"s3://b/data: members of the archive that are refused: {name!r} {reason}; "
    is_of_windows = "\\" in name
    advice = "with a tool that writes / between folders" if is_of_windows else "without them"
    assert refusal(archive).startswith(f"{refused}make the archive again {advice}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_a_folder_of_a_later_one_is_named(suffix, tmp_path) -> None:
    archive = archive_of(tmp_path / f"data{suffix}", {"a/b": b"", "a/b/c/d": b""})

    assert "'a/b' is both a file and a folder" in refusal(archive)


@pytest.mark.parametrize("suffix", TARS)
@pytest.mark.parametrize(
    ("kind", "link", "reason"),
    [
        (tarfile.SYMTYPE, "/etc/passwd", "is a link"),
        (tarfile.SYMTYPE, "good/1.png", "is a link"),
        (tarfile.LNKTYPE, "good/1.png", "is a link"),
        (tarfile.CHRTYPE, "", "is neither a file nor a folder"),
        (tarfile.BLKTYPE, "", "is neither a file nor a folder"),
        (tarfile.FIFOTYPE, "", "is neither a file nor a folder"),
    ],
)
def test_links_and_devices_of_a_tar_are_refused(suffix, kind, link, reason, tmp_path) -> None:
    members = [(entry(path), data) for path, data in GOOD.items()]
    archive = tar_with(tmp_path / f"data{suffix}", [*members, (entry("odd", kind, link), b"")])

    assert f"'odd' {reason};" in refusal(archive)


@pytest.mark.parametrize("suffix", TARS)
def test_a_link_that_a_later_member_would_write_through_is_refused(suffix, tmp_path) -> None:
    (tmp_path / "outside").mkdir()
    link = entry("good", tarfile.SYMTYPE, str(tmp_path / "outside"))
    archive = tar_with(tmp_path / f"data{suffix}", [(link, b""), (entry("good/evil"), b"x")])

    assert "'good' is a link" in refusal(archive)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        (stat.S_IFLNK, "is a link"),
        (stat.S_IFIFO, "is neither a file nor a folder"),
        (stat.S_IFCHR, "is neither a file nor a folder"),
        (stat.S_IFSOCK, "is neither a file nor a folder"),
    ],
)
def test_links_and_devices_of_a_zip_are_refused(mode, reason, tmp_path) -> None:
    info = zipfile.ZipInfo("odd")
    info.external_attr = (mode | 0o777) << 16

    assert f"'odd' {reason};" in refusal(zip_with(tmp_path / "data.zip", info, b"/etc/passwd"))


def test_a_nul_that_would_hide_the_rest_of_a_name_is_refused(tmp_path) -> None:
    archive = zip_of(tmp_path / "data.zip", {"train.pyX.txt": b""})
    archive.write_bytes(archive.read_bytes().replace(b"train.pyX.txt", b"train.py\0.txt"))

    assert "'train.py\\x00.txt' holds a NUL" in refusal(archive)


def test_an_encrypted_zip_is_refused(tmp_path) -> None:
    archive = zip_of(tmp_path / "data.zip", {"1.png": b"1"})
    set_in_table(archive, 8, "<H", 1)

    assert "'1.png' is encrypted;" in refusal(archive)


def test_a_method_of_compression_that_is_not_known_is_named(tmp_path) -> None:
    archive = zip_of(tmp_path / "data.zip", {"1.png": b"1"})
    set_in_table(archive, 10, "<H", 9)

    assert "'1.png' is compressed by method 9 (Deflate64), which is not known;" in refusal(archive)


@pytest.mark.parametrize(
    ("offset", "value", "advice"),
    [
        (8, 1, "without a password"),
        (10, 9, "with the method Deflate"),  # Explorer packs what is above 2 GiB so
    ],
)
def test_what_can_be_packed_in_another_way_is_told_how(offset, value, advice, tmp_path) -> None:
    archive = zip_of(tmp_path / "data.zip", {"1.png": b"1"})
    set_in_table(archive, offset, "<H", value)

    assert f"; make the archive again {advice}" in refusal(archive)


def test_ten_of_the_refused_members_are_named(tmp_path) -> None:
    archive = zip_of(tmp_path / "data.zip", {f"../{i}": b"" for i in range(12)})

    message = refusal(archive)

    assert "'../9' holds .. and 2 more; make" in message
    assert "'../10'" not in message


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_the_whole_table_is_examined_before_anything_is_written(suffix, tmp_path) -> None:
    archive = archive_of(tmp_path / f"data{suffix}", GOOD | {"../evil": b""})

    with pytest.raises(UnsafeKey, match=r"'../evil' holds \.\."):
        unpack_dataset(
            archive,
            "data",
            tmp_path / "target",
            "utf-8",
            Meter(None, ()),
            reserve=lambda _: pytest.fail("the disk was asked for room"),
        )


def test_names_that_a_disk_takes_for_one_are_refused() -> None:
    table = Table(folds_case=True)

    def fault(name: str, *, is_folder: bool = False) -> str | None:
        found = table.fault_of(Member(name, 0, is_folder, False, None, lambda: iter(())))
        return str(found) if found else None

    assert fault("Data/a.png") is None
    assert fault("Data/b.png") is None
    assert fault("data/c.png") == ("'data' is the same as 'Data' on this disk, which ignores case")
    assert fault("Data/A.png") == (
        "'Data/A.png' is the same as 'Data/a.png' on this disk, which ignores case"
    )
    assert fault("e\u0301") is None
    assert fault("\u00e9", is_folder=True) is not None


def test_names_that_differ_in_case_arrive_where_the_disk_knows_the_difference(tmp_path) -> None:
    archive = zip_of(tmp_path / "data.zip", {"a.png": b"1", "A.png": b"2"})

    unpack_dataset(archive, "data", tmp_path / "target", "utf-8", Meter(None, ()))

    assert (tmp_path / "target" / "A.png").read_bytes() == b"2"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_bomb_is_refused_and_one_can_say_that_it_is_meant(suffix, tmp_path) -> None:
    archive = archive_of_one_huge_file(tmp_path / f"data{suffix}", UNSUSPICIOUS_BYTES + 1)

    message = refusal(archive, StoreError)

    assert "that unpack to 1.0 GiB or more, which is above 100 times its size; " in message
    assert message.endswith("see what is in it, and say unpack: always if it is meant to be so")


def test_a_bomb_of_empty_files_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("trainjob.storage.unpack.UNSUSPICIOUS_BYTES", 100 << 10)
    members = [(entry(f"{i}"), b"") for i in range(300)]

    message = refusal(tar_with(tmp_path / "data.tar.zst", members), StoreError)

    assert "above 100 times its size" in message
