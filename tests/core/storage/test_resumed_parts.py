"""An interrupted copy of a large object: what arrived is fetched once, and proved all the same."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.core.storage.journals import num_noted_parts
from tests.core.storage.test_many_objects import peak_bytes
from tests.s3_faults import Fault, FaultProxy, fault_proxy
from tests.waiting import wait_until
from trainjob.errors import StoreDenied, StoreError
from trainjob.storage.arrived_parts import ArrivedParts, PartsOfFile
from trainjob.storage.cache.folder import Cache
from trainjob.storage.curl import arriving_file
from trainjob.storage.listing import Entry
from trainjob.storage.settings import StoreSettings
from trainjob.storage.stage import StagedChannel, stage_channel
from trainjob.storage.store import ENGINE, open_store

MIB = 1 << 20
PART_BYTES = 8 * MIB
NUM_PARTS = 6
LARGE = random.Random(6).randbytes((NUM_PARTS - 1) * PART_BYTES + 17)
STAGER = """
import sys
from pathlib import Path
from trainjob.storage.settings import StoreSettings
from trainjob.storage.stage import StagedChannel, stage_channel
url, target = sys.argv[1:]
stage_channel(url, Path(target), None, label="data", holder="job")
"""
SPANS = [(start, min(start + PART_BYTES, len(LARGE))) for start in range(0, len(LARGE), PART_BYTES)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(ENGINE, raising=False)
    return Cache(tmp_path / "cache")


def after(num_parts: int, fault: Fault) -> Callable[[str, str], Fault]:
    """Let so many parts through, and none after them."""
    left = iter(range(num_parts))

    def rule(method: str, path: str) -> Fault:
        is_part = method == "GET" and path.partition("?")[0].endswith("/large")
        return fault if is_part and next(left, None) is None else None

    return rule


def nothing(method: str, path: str) -> Fault:
    return None


def stage(url: str, folder: Path, settings: StoreSettings, proxy: FaultProxy) -> StagedChannel:
    """Stage through a proxy: another endpoint would be another source."""
    settings = replace(settings, endpoint_url=proxy.endpoint_url)
    return stage_channel(url, folder / "data", settings, label="data", holder="job")


def test_after_a_kill_only_the_parts_that_are_missing_are_fetched(s3, s3_place, cache, tmp_path):
    s3_place.put("large", LARGE)
    command = [sys.executable, "-c", STAGER, s3_place.url, str(tmp_path / "data")]

    with fault_proxy(s3.port, after(4, "hang")) as proxy:
        env = os.environ | s3.env | {"AWS_ENDPOINT_URL": proxy.endpoint_url}
        process = subprocess.Popen(command, env=env)
        wait_until(lambda: num_noted_parts(cache) == 4)
        process.kill()
        process.wait()
        proxy.ranges.clear()
        proxy.rule = nothing
        subprocess.run(command, env=env, check=True)

    assert process.returncode == -signal.SIGKILL
    assert len({*proxy.ranges}) == NUM_PARTS - 4
    assert {*proxy.ranges} <= {f"bytes={start}-{end - 1}" for start, end in SPANS}
    assert (tmp_path / "data" / "large").read_bytes() == LARGE
    assert num_noted_parts(cache) == 0


@pytest.fixture
def interrupted(s3, s3_place, cache, tmp_path, monkeypatch) -> Iterator[FaultProxy]:
    """Give a store that refused all but three of the six parts of an object, and does no more."""
    monkeypatch.setattr(arriving_file, "PART_BYTES", MIB)
    s3_place.put("large", LARGE[: 5 * MIB + 17])
    s3_place.put("small", b"1")
    refuse = after(3, "403")

    def rule(method: str, path: str) -> Fault:
        if fault := refuse(method, path):
            wait_until(lambda: num_noted_parts(cache) == 3)
        return fault

    with fault_proxy(s3.port, rule) as proxy:
        with pytest.raises(StoreDenied):
            stage(s3_place.url, tmp_path, s3.settings, proxy)
        assert num_noted_parts(cache) == 3
        proxy.rule = nothing
        proxy.ranges.clear()
        yield proxy


def test_a_copy_that_a_store_ended_goes_on_where_it_was(s3, s3_place, cache, tmp_path, interrupted):
    staged = stage(s3_place.url, tmp_path, s3.settings, interrupted)

    assert len({*interrupted.ranges}) == 3
    assert staged.moved_bytes <= 3 * MIB + 1
    assert (tmp_path / "data" / "large").read_bytes() == LARGE[: 5 * MIB + 17]


def test_parts_of_another_version_are_never_mixed_in(s3, s3_place, tmp_path, interrupted):
    s3_place.put("large", LARGE[MIB : 6 * MIB + 17])

    stage(s3_place.url, tmp_path, s3.settings, interrupted)

    assert len({*interrupted.ranges}) == 6
    assert (tmp_path / "data" / "large").read_bytes() == LARGE[MIB : 6 * MIB + 17]


def test_an_engine_that_copies_files_as_a_whole_leaves_no_parts_to_be_trusted(
    s3, s3_place, cache, tmp_path, monkeypatch, interrupted
):
    monkeypatch.setenv(ENGINE, "fsspec")
    interrupted.rule = after(0, "403")

    with pytest.raises(StoreDenied):
        stage(s3_place.url, tmp_path, s3.settings, interrupted)
    left = num_noted_parts(cache)
    monkeypatch.delenv(ENGINE)
    interrupted.rule = nothing
    interrupted.ranges.clear()
    stage(s3_place.url, tmp_path, s3.settings, interrupted)

    assert (left, len({*interrupted.ranges})) == (0, 6)
    assert (tmp_path / "data" / "large").read_bytes() == LARGE[: 5 * MIB + 17]


def test_an_archive_that_nothing_proved_and_nobody_can_read_is_fetched_again(
    s3, s3_place, cache, tmp_path
):
    # In two parts, so that its ETag is no MD5.
    with open_store(s3_place.url, s3.settings) as store:
        store.upload_chunks("bad.zip", [LARGE[: 17 * MIB]])

    with fault_proxy(s3.port, nothing) as proxy:
        for _ in range(2):
            proxy.ranges.clear()
            with pytest.raises(StoreError, match="cannot be read as an archive"):
                stage(f"{s3_place.url}/bad.zip", tmp_path, s3.settings, proxy)

    assert len({*proxy.ranges}) == 3


ENTRY = Entry("folder/large", 25, '"v1"')
"""Of three parts of 10 bytes, the last one shorter, of which the first and the last are there."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    parts = ArrivedParts(tmp_path / "parts", "boot")
    parts.note(ENTRY, 10, 0, "md5:0a")
    parts.note(ENTRY, 10, 2, "md5:0a")
    return tmp_path / "parts"


def test_a_note_is_read_by_the_next_process_of_this_start_of_the_machine(file: Path) -> None:
    found = ArrivedParts(file, "boot").of(ENTRY, 10)

    assert found == PartsOfFile(ENTRY.version, 10, "md5:0a", bytearray([1, 0, 1]))
    assert found.size_bytes(ENTRY.size_bytes) == 15
    assert not ArrivedParts(file, "another boot")
    assert ArrivedParts(file, "boot").of(replace(ENTRY, version='"v2"'), 10) is None
    assert ArrivedParts(file, "boot").of(ENTRY, 5) is None


def test_an_md5_that_an_older_trainjob_wrote_is_known_as_such(file: Path) -> None:
    file.write_text(file.read_text().replace("md5:", ""))

    found = ArrivedParts(file, "boot").of(ENTRY, 10)

    assert found is not None
    assert found.told == "md5:0a"


def test_a_line_that_was_cut_off_is_one_part_less(file: Path) -> None:
    file.write_text(file.read_text()[:-5])

    found = ArrivedParts(file, "boot").of(ENTRY, 10)

    assert found is not None
    assert found.flags == bytearray([1])


@pytest.mark.parametrize(("size", "there"), [(25, 15), (24, 0)])
def test_parts_that_a_file_is_too_short_for_are_not_kept(
    file: Path, tmp_path: Path, size: int, there: int
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / ENTRY.path).write_bytes(bytes(size))
    parts = ArrivedParts(file, "boot")

    kept = parts.keep([ENTRY], 10, tmp_path)

    assert kept == [ENTRY.path] * bool(there)
    assert parts.size_bytes == there
    assert bool(ArrivedParts(file, "boot")) == bool(there)


def test_what_is_forgotten_stays_so_and_what_has_no_version_is_not_noted(file: Path) -> None:
    parts = ArrivedParts(file, "boot")
    parts.forget(ENTRY.path)
    parts.note(Entry("other", 10, ""), 10, 0, "")

    assert not parts
    assert not ArrivedParts(file, "boot")


def test_the_parts_of_a_terabyte_take_little_memory(tmp_path: Path) -> None:
    lines = (f'["large", "v1", {8 * MIB}, {number}, ""]\n' for number in range(131_072))
    (tmp_path / "parts").write_text("boot\n" + "".join(lines))
    found: list[ArrivedParts] = []

    took_bytes = peak_bytes(lambda: found.append(ArrivedParts(tmp_path / "parts", "boot")))

    assert found[0].of(Entry("large", 1 << 40, "v1"), 8 * MIB)
    assert took_bytes < MIB
