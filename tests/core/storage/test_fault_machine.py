"""What happens to the machine while a dataset is staged: a full disk, kills, forks, company.

What is published is exact; what could not be finished is not there.
"""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.core.storage.conftest import S3Place
from tests.core.storage.journals import journaled
from tests.s3_faults import fault_proxy
from tests.s3_server import S3Server
from tests.waiting import PATIENCE_S
from trainjob.errors import StoreError
from trainjob.storage.cache.folder import Cache
from trainjob.storage.meter import Meter
from trainjob.storage.stage import stage_channel
from trainjob.storage.store import open_store

_STAGER = """
import sys
from pathlib import Path
from trainjob.storage.stage import stage_channel
url, target = sys.argv[1:]
stage_channel(url, Path(target), None, label="data", holder=Path(target).name)
"""


@pytest.fixture
def tree(s3_place: S3Place) -> dict[str, bytes]:
    """Small objects, and one that is copied in ranges."""
    content = random.Random(4)
    tree = {"a large": content.randbytes(20 << 20)}
    tree |= {f"folder/{number}": content.randbytes(1000) for number in range(200)}
    for name, data in tree.items():
        s3_place.put(name, data)
    return tree


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def start(
    s3: S3Server, engine: str, cache: Cache, tmp_path: Path
) -> Callable[..., subprocess.Popen[bytes]]:
    """Start a stager in a process of its own, with the cache that they share."""

    def start(url: str, name: str, endpoint_url: str) -> subprocess.Popen[bytes]:
        env = os.environ | s3.env | {"AWS_ENDPOINT_URL": endpoint_url}
        env["TRAINJOB_CACHE_DIR"] = str(cache.root)
        command = [sys.executable, "-c", _STAGER, url, str(tmp_path / name)]
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE)

    return start


@pytest.fixture
def disk_mib(request: pytest.FixtureRequest) -> int:
    return int(getattr(request, "param", 4))


@pytest.fixture
def small_disk(tmp_path: Path, disk_mib: int) -> Iterator[Path]:
    """A disk of 4 MiB, or what the test says."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={disk_mib}m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_kills_at_any_moment_publish_nothing_and_what_is_finished_is_not_fetched_again(
    s3, s3_place, tree, start, cache, tmp_path, read_tree
):
    folder, running = f"/{s3_place.bucket}/{s3_place.prefix}/", list[subprocess.Popen[bytes]]()
    slow, deciding = threading.Lock(), threading.Lock()
    kill_when: list[Callable[[set[str]], bool]] = [
        lambda there: len(there) >= 1,
        lambda there: len(there) >= 30,
        lambda there: "a large" in there,
    ]

    def kill(method: str, path: str) -> None:
        if len(kill_when) == 1 and path.startswith(f"{folder}folder/"):
            with slow:  # so that the large one is not the last
                proxy.ended.wait(0.03)
        with deciding:
            if kill_when and kill_when[0](journaled(cache)):
                del kill_when[0]
                running[-1].kill()

    finished, fetched_again = [set[str]()], set[str]()
    with fault_proxy(s3.port, kill) as proxy:
        while not running or running[-1].returncode == -signal.SIGKILL:
            assert not (tmp_path / "data").exists()
            proxy.requests.clear()
            running.append(start(s3_place.url, "data", proxy.endpoint_url))
            _, said = running[-1].communicate()
            asked = {unquote(path).removeprefix(folder) for _, path in proxy.requests}
            fetched_again |= asked & finished[-1]
            finished.append(journaled(cache))

    assert [process.returncode for process in running] == [-signal.SIGKILL] * 3 + [0], said
    assert set() < finished[1] <= finished[2] <= finished[3]
    assert "a large" in finished[3]
    assert fetched_again == set()
    assert read_tree(tmp_path / "data") == tree


def test_stagers_in_company_get_the_same_exact_tree(s3, s3_place, tree, start, tmp_path, read_tree):
    names = ("one", "two", "three")

    processes = [start(s3_place.url, name, s3.endpoint_url) for name in names]
    said = [process.communicate()[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert all(read_tree(tmp_path / name) == tree for name in names)


@pytest.mark.parametrize(
    ("disk_mib", "num_files", "file_mib"), [(4, 3, 1), (27, 1, 24)], indirect=["disk_mib"]
)
@pytest.mark.usefixtures("engine")
def test_a_disk_that_fills_up_is_named_and_nothing_is_published(
    s3, s3_place, small_disk, disk_mib, num_files, file_mib, tmp_path, monkeypatch
):
    for number in range(num_files):
        s3_place.put(f"{number}", bytes(file_mib << 20))
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(small_disk / "cache"))

    another, filling = small_disk / "of another", threading.Lock()

    def fill(method: str, path: str) -> None:
        if method == "GET" and "list-type" not in path:
            with filling, suppress(OSError):
                if not another.exists():
                    another.write_bytes(bytes((disk_mib - 1) << 20))

    with fault_proxy(s3.port, fill) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        with pytest.raises(StoreError) as caught:
            stage_channel(s3_place.url, tmp_path / "data", settings, label="data", holder="job")

    assert str(small_disk) in str(caught.value)
    assert "No space left on device; see that the disk" in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("engine")
def test_a_dataset_larger_than_the_disk_is_refused_before_the_first_byte(
    s3, s3_place, small_disk, tmp_path, monkeypatch
):
    s3_place.put("large", bytes(5 << 20))
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(small_disk / "cache"))

    with fault_proxy(s3.port, lambda method, path: None) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        with pytest.raises(StoreError, match=r"free for 5.0 MiB") as caught:
            stage_channel(s3_place.url, tmp_path / "data", settings, label="data", holder="job")

    assert str(small_disk) in str(caught.value)
    assert not any("/large" in path for _, path in proxy.requests)


@pytest.mark.parametrize("is_new", [True, False], ids=["a new store", "the same store"])
def test_a_process_that_forks_after_use_and_its_child_both_go_on(
    s3, s3_place, tmp_path, engine, is_new
):
    if engine == "s3fs" and not is_new:
        pytest.skip("a loop of fsspec stays in the process that began it")
    for number in range(20):
        s3_place.put(f"{number}", b"x" * 10_000)

    def fetch(store, target: Path) -> bool:
        files = store.list_files().files
        store.download(files, target, Meter(None, files))
        return sum(file.stat().st_size for file in target.iterdir()) == 200_000

    with open_store(s3_place.url, s3.settings) as store:
        assert fetch(store, tmp_path / "before")
        if not (child := os.fork()):
            try:
                signal.alarm(int(PATIENCE_S))
                used = open_store(s3_place.url, s3.settings) if is_new else store
                os._exit(0 if fetch(used, tmp_path / "child") else 1)
            finally:
                os._exit(2)
        assert fetch(store, tmp_path / "parent")
        _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
