import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainjob import archive
from trainjob.archive import is_archive
from trainjob.code_limits import MODELARTS_LIMITS
from trainjob.errors import SourceError, StoreNotFound

Content = dict[str, bytes]

unpack_archive = partial(archive.unpack_archive, limits=MODELARTS_LIMITS)

TREE: Content = {
    "train.py": b"print('hi')\n",
    "a/b/ümlaut und leer.txt": "größe\n".encode(),
    "a/empty": b"",
}


def zip_of(file: Path, content: Content) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file


def tar_of(file: Path, content: Content) -> Path:
    return tar_with(file, ((tarfile.TarInfo(name), data) for name, data in content.items()))


def tar_with(file: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> Path:
    mode = "w" if file.name.endswith(".tar") else "w:gz"
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def tar_info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def files_of(folder: Path) -> Content:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refusal_of(file: Path, target: Path) -> str:
    with pytest.raises(SourceError) as caught:
        unpack_archive(file, file.name, target)
    assert not target.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("code.zip", zip_of),
        ("code.tar", tar_of),
        ("code.tar.gz", tar_of),
        ("code.tgz", tar_of),
        ("CODE.ZIP", zip_of),
    ],
)
def test_unpacks_every_kind(
    name: str, pack: Callable[[Path, Content], Path], tmp_path: Path
) -> None:
    file = pack(tmp_path / name, TREE)

    unpack_archive(file, name, tmp_path / "tree")

    assert is_archive(name)
    assert files_of(tmp_path / "tree") == TREE


def test_names_that_are_no_archive() -> None:
    assert not any(map(is_archive, ("code", "code.zip/", "code.tar.bz2", "zip", "code.gz")))


def test_keeps_of_the_modes_only_whether_a_file_is_executable(tmp_path: Path) -> None:
    modes = {"run.sh": 0o4777, "data": 0o604, "locked": 0o000}
    infos = {name: tar_info(name) for name in modes}
    for name, info in infos.items():
        info.mode = modes[name]
    as_tar = tar_with(tmp_path / "code.tar", [(info, b"x") for info in infos.values()])
    as_zip = tmp_path / "code.zip"
    with zipfile.ZipFile(as_zip, "w") as archive:
        for name, mode in modes.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFREG | mode) << 16
            archive.writestr(entry, b"x")

    unpack_archive(as_tar, "code.tar", tmp_path / "tar")
    unpack_archive(as_zip, "code.zip", tmp_path / "zip")

    for tree in (tmp_path / "tar", tmp_path / "zip"):
        found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tree.iterdir()}
        assert found == {"run.sh": 0o755, "data": 0o644, "locked": 0o644}


def test_keeps_empty_folders_and_takes_names_that_start_with_a_dot_slash(tmp_path: Path) -> None:
    members = [
        (tar_info("./", tarfile.DIRTYPE), b""),
        (tar_info("./train.py"), b"1"),
        (tar_info("./out/", tarfile.DIRTYPE), b""),
        (tar_info("./out", tarfile.DIRTYPE), b""),
    ]

    unpack_archive(tar_with(tmp_path / "c.tar", members), "c.tar", tmp_path / "tree")

    assert sorted(path.name for path in (tmp_path / "tree").iterdir()) == ["out", "train.py"]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../evil.py", "'../evil.py' holds .."),
        ("a/../../evil.py", "'a/../../evil.py' holds .."),
        ("/etc/evil", "'/etc/evil' is absolute"),
        ("C:/evil", "'C:/evil' is absolute"),
        ("..\\evil.py", "'..\\\\evil.py' holds a backslash"),
        ("x" * 256, f"'{'x' * 256}' has a part of more than 255 bytes"),
        (".", "'.' has no name"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_refuses_a_member_by_its_name(name: str, fault: str, kind: str, tmp_path: Path) -> None:
    pack = zip_of if kind == "zip" else tar_of
    file = pack(tmp_path / f"code.{kind}", {"train.py": b"", name: b""})

    message = refusal_of(file, tmp_path / "tree")

    assert message == (
        f"algorithm.code.url: asked for an archive of plain files and folders in 'code.{kind}', "
        f"found members that are refused: {fault}; make the archive again without them"
    )
    assert not (tmp_path / "evil.py").exists()


@pytest.mark.parametrize(
    ("info", "fault"),
    [
        (tar_info("l", tarfile.SYMTYPE, "/etc/passwd"), "'l' is a link"),
        (tar_info("l", tarfile.SYMTYPE, "train.py"), "'l' is a link"),
        (tar_info("l", tarfile.LNKTYPE, "train.py"), "'l' is a link"),
        (tar_info("d", tarfile.CHRTYPE), "'d' is neither a file nor a folder"),
        (tar_info("d", tarfile.BLKTYPE), "'d' is neither a file nor a folder"),
        (tar_info("d", tarfile.FIFOTYPE), "'d' is neither a file nor a folder"),
    ],
)
def test_refuses_links_and_devices_in_a_tar(
    info: tarfile.TarInfo, fault: str, tmp_path: Path
) -> None:
    file = tar_with(tmp_path / "code.tar", [(tar_info("train.py"), b""), (info, b"")])

    assert fault in refusal_of(file, tmp_path / "tree")


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (stat.S_IFLNK, "'m' is a link"),
        (stat.S_IFIFO, "'m' is neither a file nor a folder"),
        (stat.S_IFCHR, "'m' is neither a file nor a folder"),
    ],
)
def test_refuses_links_and_devices_in_a_zip(kind: int, fault: str, tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("m")
    entry.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        archive.writestr("train.py", b"")
        archive.writestr(entry, b"/etc/passwd")

    assert fault in refusal_of(tmp_path / "code.zip", tmp_path / "tree")


def test_refuses_a_nul_in_the_name_of_a_zip_member(tmp_path: Path) -> None:
    file = zip_of(tmp_path / "code.zip", {"train.pyX.txt": b""})
    file.write_bytes(file.read_bytes().replace(b"train.pyX.txt", b"train.py\0.txt"))

    assert "'train.py\\x00.txt' holds a NUL" in refusal_of(file, tmp_path / "tree")


def test_refuses_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    file = tar_of(tmp_path / "code.tar", {"caf\udce9.py": b""})

    assert "'caf\\udce9.py' is not UTF-8" in refusal_of(file, tmp_path / "tree")


def test_refuses_an_encrypted_zip(tmp_path: Path) -> None:
    file = zip_of(tmp_path / "code.zip", {"train.py": b"1"})
    data = bytearray(file.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(data)

    assert "'train.py' is encrypted" in refusal_of(file, tmp_path / "tree")


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_refuses_a_member_that_is_there_twice(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"code.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("train.py", b"1")
            archive.writestr("train.py", b"2")
    else:
        tar_with(file, [(tar_info("train.py"), b"1"), (tar_info("./train.py"), b"2")])

    assert "train.py' is there twice" in refusal_of(file, tmp_path / "tree")


def test_refuses_a_file_that_is_also_a_folder(tmp_path: Path) -> None:
    file = zip_of(tmp_path / "code.zip", {"a": b"", "a/b": b""})

    assert "'a' is both a file and a folder" in refusal_of(file, tmp_path / "tree")


def test_names_ten_of_the_refused_members(tmp_path: Path) -> None:
    file = zip_of(tmp_path / "code.zip", {f"../{i}": b"" for i in range(12)})

    message = refusal_of(file, tmp_path / "tree")

    assert "'../9' holds .. and 2 more; make" in message
    assert "'../10'" not in message


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_takes_1024_files_and_folders_and_not_one_more(kind: str, tmp_path: Path) -> None:
    pack = zip_of if kind == "zip" else tar_of
    content = {f"pkg/sub/{i}.py": b"" for i in range(1022)}
    most = pack(tmp_path / f"most.{kind}", content)
    above = pack(tmp_path / f"above.{kind}", {**content, "one.py": b""})

    unpack_archive(most, most.name, tmp_path / "most")

    assert len(list((tmp_path / "most").rglob("*"))) == 1024
    assert refusal_of(above, tmp_path / "above") == (
        "algorithm.code.url: asked for code of at most 1,024 files and folders, "
        f"found 1,025 in 'above.{kind}', 1,024 of them in 'pkg'; "
        "leave out what the training does not import, and give data as an input channel"
    )


def test_stops_reading_an_archive_with_too_many_members(tmp_path: Path) -> None:
    file = tar_of(tmp_path / "code.tar", {str(i): b"" for i in range(1025)})
    with file.open("r+b") as opened:
        opened.seek(1025 * 512)
        opened.write(b"garbage that is never reached")

    assert "found more than 1,024 in 'code.tar'" in refusal_of(file, tmp_path / "tree")


def test_refuses_declared_sizes_above_the_limit_before_it_unpacks(tmp_path: Path) -> None:
    info = tar_info("weights.bin")
    info.size = MODELARTS_LIMITS.max_bytes + 1
    file = tmp_path / "code.tar"
    file.write_bytes(info.tobuf() + bytes(1024))

    assert refusal_of(file, tmp_path / "tree") == (
        "algorithm.code.url: asked for code of at most 5 GiB, found 5.0 GiB in 'code.tar', "
        "the largest file being 'weights.bin'; "
        "leave out what the training does not import, and give data as an input channel"
    )


def test_a_zip_that_understates_a_size_writes_no_more_than_it_declares(tmp_path: Path) -> None:
    file = zip_of(tmp_path / "code.zip", {"bomb": bytes(1 << 20)})
    data = bytearray(file.read_bytes())
    struct.pack_into("<L", data, data.index(b"PK\x01\x02") + 24, 10)
    file.write_bytes(data)

    with pytest.raises(SourceError, match="bytes that cannot be read as one"):
        unpack_archive(file, "code.zip", tmp_path / "tree")

    assert sum(map(len, files_of(tmp_path / "tree").values())) <= 10


def test_refuses_a_header_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    header = tar_info("x", tarfile.XHDTYPE)
    header.size = 1 << 32
    file = tmp_path / "code.tgz"
    file.write_bytes(gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)))

    assert "a header of 4,294,967,296 bytes" in refusal_of(file, tmp_path / "tree")


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    file = tar_of(tmp_path / "code.tar", {"train.py": b"1", "model.py": b"2"})
    data = bytearray(file.read_bytes())
    data[1024:1030] = b"damage"
    file.write_bytes(data)

    assert "a damaged header" in refusal_of(file, tmp_path / "tree")


def test_a_zip_that_points_before_its_start_is_corrupt(tmp_path: Path) -> None:
    file = zip_of(tmp_path / "code.zip", {"train.py": b"1"})
    data = bytearray(file.read_bytes())
    data[data.index(b"PK\x05\x06") + 16] += 1
    file.write_bytes(data)

    with pytest.raises(SourceError, match="a position before its start"):
        unpack_archive(file, "code.zip", tmp_path / "tree")


@pytest.mark.parametrize("name", ["code.zip", "code.tar", "code.tar.gz", "code.tgz"])
@pytest.mark.parametrize("data", [b"", b"not an archive" * 100])
def test_refuses_bytes_that_are_no_archive(name: str, data: bytes, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(data)

    message = refusal_of(file, tmp_path / "tree")

    assert message.startswith(
        f"algorithm.code.url: asked for the archive '{name}', found bytes that cannot be read"
    )
    assert message.endswith("; make or upload the archive again")


@pytest.mark.parametrize("name", ["code.zip", "code.tar"])
def test_refuses_an_archive_without_a_file(name: str, tmp_path: Path) -> None:
    pack = zip_of if name == "code.zip" else tar_of

    assert refusal_of(pack(tmp_path / name, {}), tmp_path / "tree") == (
        f"algorithm.code.url: asked for code, found no file in '{name}'; "
        "check the url and put the code there"
    )


def test_an_archive_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match=r"code\.zip: no such file; check the path"):
        unpack_archive(tmp_path / "code.zip", str(tmp_path / "code.zip"), tmp_path / "tree")


@pytest.mark.parametrize("name", ["code.zip", "code.tar", "code.tgz"])
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_archive_unpacks_or_is_refused(
    name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Nothing but a SourceError comes out, and nothing is written outside the target."""
    folder = tmp_path_factory.mktemp("damaged")
    pack = zip_of if name == "code.zip" else tar_of
    file = pack(folder / name, TREE)
    good = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(good)))
    file.write_bytes(good[:cut])

    with suppress(SourceError):
        unpack_archive(file, name, folder / "tree")

    assert {path.name for path in folder.iterdir()} <= {name, "tree"}
