"""What a dataset of very many objects, or one object of a terabyte, takes of the memory."""

import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import starmap

from trainjob.storage.cache.snapshot import FileLine, Header, Snapshot, now, write_manifest
from trainjob.storage.cache.source import Source
from trainjob.storage.curl.arriving_file import PART_BYTES, ArrivingFile
from trainjob.storage.listing import Entry, Listing
from trainjob.storage.meter import Meter

NUM_FILES = 20_000
TB = 10**12


def source(*files: tuple[str, int, str], folders: tuple[str, ...] = ()) -> Source:
    return Source(
        url="s3://bucket/tree",
        folder_url="s3://bucket/tree/",
        listing=Listing(tuple(starmap(Entry, files)), folders),
        endpoint="",
        unpacks=None,
        folder=None,
        is_one_file=False,
        engine="curl",
    )


def header(num_files: int) -> Header:
    return Header(
        url="s3://bucket/tree",
        source="0",
        num_files=num_files,
        size_bytes=0,
        fingerprint="",
        verified="etag",
        engine="curl",
        created=now(),
    )


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_key_of_many_objects_is_made_object_by_object():
    many = source(*((f"train/{i:08d}.jpeg", i, f'"{i:032x}"') for i in range(NUM_FILES)))

    assert peak_bytes(lambda: many.key) < 20 * NUM_FILES


def test_the_manifest_of_many_objects_is_written_object_by_object(tmp_path):
    lines = (
        FileLine(f"train/{i:08d}\n.jpeg", i, f'"{i:032x}"', f"{i:064x}", i, "etag")
        for i in range(NUM_FILES)
    )

    took_bytes = peak_bytes(lambda: write_manifest(tmp_path, header(NUM_FILES), lines))

    assert took_bytes < 20 * NUM_FILES
    files = Snapshot(tmp_path, header(NUM_FILES)).files()
    assert len(files) == NUM_FILES
    assert files[7] == FileLine("train/00000007\n.jpeg", 7, f'"{7:032x}"', f"{7:064x}", 7, "etag")


def test_a_manifest_of_no_file_can_be_read(tmp_path):
    write_manifest(tmp_path, header(0), ())

    assert Snapshot(tmp_path, header(0)).files() == []


def test_the_key_tells_every_listing_from_every_other():
    files = [("a", 1, "2"), ("b", 1, "2")]
    sources = [
        source(),
        source(files[0]),
        source(*files),
        source(("a", 1, "3"), files[1]),
        source(("a", 2, "2"), files[1]),
        source(('a", 1, "2"], ["b', 1, "2")),
        source(*files, folders=("c",)),
        source(*files, folders=("c", "d")),
    ]

    assert len({each.key for each in sources}) == len(sources)
    assert source(*files, folders=("c", "d")).key == source(*files[::-1], folders=("d", "c")).key


def test_the_parts_of_a_large_object_are_made_when_they_are_asked_for(tmp_path):
    with ThreadPoolExecutor() as pool:
        file = ArrivingFile(
            str(tmp_path / "object"), Entry("object", TB, ""), Meter(None, ()), pool, None
        )
        counts: list[int] = []
        took_bytes = peak_bytes(lambda: counts.append(sum(1 for _ in file.parts())))
        file.close()

    assert counts == [-(-TB // PART_BYTES)]
    assert took_bytes < 1 << 16
