"""Broken archives: each is told from a whole one, and nothing of them stays anywhere."""

import gzip
import random
import tarfile
import zipfile
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.storage.archives import (
    GOOD,
    SUFFIXES,
    TARS,
    archive_of,
    compressed,
    entry,
    refusal,
    set_in_table,
    tar_with,
    zip_of,
)
from trainjob.errors import StoreError
from trainjob.storage.meter import Meter
from trainjob.storage.unpack import unpack_dataset


def test_a_zip_that_understates_a_size_is_stopped_there(tmp_path) -> None:
    archive = zip_of(tmp_path / "data.zip", {"bomb": bytes(1 << 20)})
    set_in_table(archive, 24, "<L", 10)

    assert "(Bad CRC-32 for file 'bomb')" in refusal(archive, StoreError).replace("'bomb': ", "")


def test_a_zip_that_overstates_a_size_is_refused(tmp_path) -> None:
    archive = zip_of(tmp_path / "data.zip", {"short": b"123"})
    set_in_table(archive, 24, "<L", 10)

    assert "'short' has another size than the archive says" in refusal(archive, StoreError)


def test_a_changed_byte_of_a_zip_is_told_with_the_name_of_its_file(tmp_path) -> None:
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for name, data in GOOD.items():
            packed.writestr(name, data)
    packed_bytes = bytearray(archive.read_bytes())
    packed_bytes[500] ^= 1
    archive.write_bytes(packed_bytes)

    message = refusal(archive, StoreError)

    assert "'good/1.png': Bad CRC-32 for file 'good/1.png'" in message
    assert message.endswith("; make or upload the archive again")


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar.zst"])
def test_a_changed_byte_of_a_compressed_tar_is_found_by_its_checksum(suffix, tmp_path) -> None:
    archive = archive_of(tmp_path / f"data{suffix}", {"1": random.Random(1).randbytes(100_000)})
    data = bytearray(archive.read_bytes())
    data[50_000] ^= 1
    archive.write_bytes(data)

    assert "bytes that cannot be read as an archive of that name (" in refusal(archive, StoreError)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("left", [0.1, 0.5, 0.97])
def test_an_archive_that_was_cut_off_is_refused(suffix, left, tmp_path) -> None:
    archive = archive_of(tmp_path / f"data{suffix}", {"1": random.Random(1).randbytes(100_000)})
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * left)])

    assert "bytes that cannot be read as an archive of that name (" in refusal(archive, StoreError)


@pytest.mark.parametrize("suffix", TARS)
def test_a_tar_that_was_cut_off_between_two_files_is_refused(suffix, tmp_path) -> None:
    plain = tar_with(tmp_path / "plain.tar", [(entry("1"), b"1"), (entry("2"), b"2")])
    archive = compressed(tmp_path / f"data{suffix}", plain.read_bytes()[:1024])

    assert "(no mark of its end, so it may be cut off)" in refusal(archive, StoreError)


@pytest.mark.parametrize("suffix", TARS)
def test_a_second_archive_behind_the_first_is_not_left_out_in_silence(suffix, tmp_path) -> None:
    plain = tar_with(tmp_path / "plain.tar", [(entry("1"), b"1")]).read_bytes()
    archive = compressed(tmp_path / f"data{suffix}", plain + plain)

    assert "(something behind its end, such as a second archive)" in refusal(archive, StoreError)


@pytest.mark.parametrize("suffix", TARS)
def test_a_damaged_header_is_not_taken_for_the_end(suffix, tmp_path) -> None:
    plain = tar_with(tmp_path / "plain.tar", [(entry("1"), b"1"), (entry("2"), b"2")])
    data = bytearray(plain.read_bytes())
    data[1024:1030] = b"damage"
    archive = compressed(tmp_path / f"data{suffix}", bytes(data))

    assert "(a damaged header)" in refusal(archive, StoreError)


@pytest.mark.parametrize("suffix", TARS)
def test_a_header_that_unpacks_to_gigabytes_is_refused(suffix, tmp_path) -> None:
    info = entry("x", tarfile.XHDTYPE)
    info.size = 1 << 32
    plain = info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)

    message = refusal(compressed(tmp_path / f"data{suffix}", plain), StoreError)

    assert "(a header of 4,294,967,296 bytes)" in message


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("data", [b"", b"not an archive" * 100])
def test_bytes_that_are_no_archive_are_refused(suffix, data, tmp_path) -> None:
    archive = tmp_path / f"data{suffix}"
    archive.write_bytes(data)

    assert "bytes that cannot be read as an archive of that name (" in refusal(archive, StoreError)


def test_a_compressed_archive_named_as_a_plain_one_is_refused(tmp_path) -> None:
    archive = tmp_path / "data.tar"
    archive.write_bytes(
        gzip.compress(tar_with(tmp_path / "p.tar", [(entry("1"), b"")]).read_bytes())
    )

    assert "cannot be read as an archive of that name" in refusal(archive, StoreError)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_archive_unpacks_or_is_refused(suffix, data, tmp_path_factory) -> None:
    """Nothing but a StoreError comes out, and nothing is written outside the target."""
    folder = tmp_path_factory.mktemp("damaged")
    archive = archive_of(folder / f"data{suffix}", GOOD)
    content = bytearray(archive.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    archive.write_bytes(content[: data.draw(st.none() | st.integers(0, len(content)))])

    is_unpacked = False
    with suppress(StoreError):
        unpack_dataset(archive, "data", folder / "target", "utf-8", Meter(None, ()))
        is_unpacked = True

    left = {path.name for path in folder.iterdir()}
    assert left == {archive.name, "target"} if is_unpacked else {archive.name}
