"""The cache on disks that do not let everything be done: layers of images, mounts, odd drivers."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainjob.storage.cache.evict import make_room, removable, remove_unused
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.hold import release
from trainjob.storage.cache.incoming import abandoned
from trainjob.storage.cache.owner import Owner
from trainjob.storage.cache.snapshot import Snapshot
from trainjob.storage.stage import stage_channel

LEFT = "number"
"""Ends the name of what broke off while the image was made."""


@pytest.fixture
def stage(s3_place, tmp_path):
    """Stage what the S3 place has for a job of this name."""

    def run(name: str) -> None:
        stage_channel(s3_place.url, tmp_path / name, s3_place.settings, label="data", holder=name)

    return run


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
    tmp_path, monkeypatch, stage, s3_place, caplog
):
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    cache = Cache.of_machine()
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
