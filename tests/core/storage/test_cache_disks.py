"""The cache on disks that do not let everything be done: layers of images, mounts, odd drivers."""

import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainjob.errors import StoreDenied
from trainjob.storage.cache.evict import make_room, removable, remove_unused
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.hold import release
from trainjob.storage.cache.incoming import abandoned
from trainjob.storage.cache.owner import Owner
from trainjob.storage.cache.snapshot import Snapshot
from trainjob.storage.failures import local_failures
from trainjob.storage.stage import stage_channel

LEFT = "number"
"""Ends the name of what broke off while the image was made."""


@pytest.fixture
def stage(s3_place, tmp_path):
    """Stage what the S3 place has for a job of this name."""

    def run(name: str, url: str = s3_place.url, **options) -> None:
        settings = s3_place.settings
        stage_channel(url, tmp_path / name, settings, label="data", holder=name, **options)

    return run


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Cache:
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    return Cache(tmp_path / "cache")


@pytest.fixture
def cache_of_root() -> Iterator[Cache]:
    """A cache that root has used, and then a person who owns its folder."""
    if os.geteuid():
        pytest.skip("only root can be two users")
    root = Path(tempfile.mkdtemp())  # that of pytest is for root alone
    root.chmod(0o755)
    yield Cache(root)
    os.seteuid(0)
    shutil.rmtree(root)


@pytest.fixture
def no_permissions(monkeypatch) -> None:
    """Let nobody set permissions, as on a share of Windows that somebody else has mounted."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(Path, "chmod", refuse)


@pytest.fixture
def image(tmp_path, monkeypatch, stage, s3_place) -> Iterator[Cache]:
    """A cache that lies in the image of a container: in a lower layer of an overlay."""
    disk, layers = tmp_path / "disk", tmp_path / "layers"
    for folder in (disk, layers):
        folder.mkdir()
    _mount(layers, "-t", "tmpfs", "-o", "size=8m", "tmpfs")
    try:
        for name in ("lower", "upper", "work"):
            (layers / name).mkdir()
        monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(layers / "lower" / "cache"))
        s3_place.put("file", b"right")
        stage("build")
        built = Cache.of_machine()
        release(built, "build")
        [snapshot] = built.snapshots()
        (built.incoming / f"{snapshot.header.source}-{Owner.nobody()}--{LEFT}").mkdir()
        monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(disk / "cache"))
        options = ",".join(f"{n}dir={layers / n}" for n in ("lower", "upper", "work"))
        _mount(disk, "-t", "overlay", "-o", f"{options},redirect_dir=off", "overlay")
        try:
            yield Cache.of_machine()
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    finally:
        subprocess.run(["umount", str(layers)], check=True)


def _mount(place: Path, *options: str) -> None:
    said = subprocess.run(["mount", *options, str(place)], capture_output=True, check=False)
    if said.returncode:
        pytest.skip(f"only root may mount: {said.stderr.decode()}")


def test_what_the_image_of_a_container_brings_can_be_removed(image):
    [snapshot] = image.snapshots()

    make_room(Cache(image.root, max_size_bytes=0), 1, 1)

    assert not snapshot.root.exists()
    assert image.broken() == []


def test_what_the_image_of_a_container_brings_spoiled_is_fetched_again(image, stage, tmp_path):
    [snapshot] = image.snapshots()
    (snapshot.data / "file").unlink()

    stage("job")

    assert (tmp_path / "job" / "file").read_bytes() == b"right"


def test_what_broke_off_in_the_image_of_a_container_is_in_nobodys_way(
    image, stage, s3_place, tmp_path
):
    s3_place.put("file", b"changed")

    stage("job")

    assert (tmp_path / "job" / "file").read_bytes() == b"changed"
    [left] = abandoned(image)
    assert left.name.endswith(LEFT)


def test_what_cannot_be_removed_keeps_nothing_else_from_being_removed(
    cache, stage, s3_place, caplog
):
    for number in range(2):
        s3_place.put("file", str(number).encode())
        stage("job")
        release(cache, "job")
    oldest = min(cache.snapshots(), key=Snapshot.used_at)
    _mount(oldest.root, "--bind", str(oldest.root))  # such cannot be renamed
    try:
        removed = [remove_unused(cache, unused) for unused in removable(cache)]
    finally:
        subprocess.run(["umount", str(oldest.root)], check=True)

    assert removed == [False, True]
    assert f"{oldest.root} cannot be removed" in caplog.text


def test_what_is_on_a_disk_that_is_read_only_by_now_stays(stage, s3_place, cache, caplog):
    s3_place.put("file", b"right")
    cache.root.mkdir()
    _mount(cache.root, "-t", "tmpfs", "tmpfs")
    try:
        stage("job")
        release(cache, "job")
        subprocess.run(["mount", "-o", "remount,ro", str(cache.root)], check=True)
        removed = [remove_unused(cache, unused) for unused in removable(cache)]
    finally:
        subprocess.run(["umount", str(cache.root)], check=True)

    assert removed == [False]
    assert "cannot be removed: Read-only file system" in caplog.text


@pytest.mark.usefixtures("no_permissions", "cache")
def test_a_disk_without_permissions_has_a_cache_and_warns(stage, s3_place, tmp_path, caplog):
    s3_place.put("file", b"right")

    stage("job")
    stage("copy", mode="copy")

    assert (tmp_path / "job" / "file").read_bytes() == b"right"
    assert (tmp_path / "copy" / "file").read_bytes() == b"right"
    assert caplog.text.count("lets nobody set permissions (Operation not permitted)") == 1


@pytest.mark.usefixtures("no_permissions", "cache")
def test_a_file_or_program_of_this_machine_comes_to_a_disk_without_permissions(stage, tmp_path):
    program = tmp_path / "own" / "run.sh"
    program.parent.mkdir()
    program.touch(mode=0o755)

    stage("job", str(program))
    stage("copy", str(program.parent), mode="copy")

    assert (tmp_path / "job" / "run.sh").exists()
    assert (tmp_path / "copy" / "run.sh").exists()


def test_the_folder_of_one_file_of_this_machine_cannot_be_written(stage, tmp_path, cache):
    file = tmp_path / "own.bin"
    file.touch(mode=0o640)

    stage("job", str(file))

    [snapshot] = cache.snapshots()
    assert stat.S_IMODE(snapshot.data.stat().st_mode) == 0o555
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_what_is_another_users_in_a_cache_is_named(
    cache_of_root, stage, s3_place, tmp_path, monkeypatch
):
    """As after one run with sudo: the folder itself is the right one."""
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(cache_of_root.root))
    s3_place.put("file", b"right")
    stage("job")
    [snapshot] = cache_of_root.snapshots()

    os.seteuid(65534)

    with pytest.raises(StoreDenied) as caught, local_failures(str(cache_of_root.root)):
        cache_of_root.leased(snapshot.key, "another")
    lock = str(cache_of_root.root / "locks" / "leases")
    assert f"permission denied for {lock!r}; give the user" in str(caught.value)
    assert cache_of_root.hidden() == [snapshot.root]
    assert cache_of_root.snapshots() == []
