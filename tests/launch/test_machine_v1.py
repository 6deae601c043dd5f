"""Limits of containers on hosts whose cgroups are of version 1, as with Docker on older systems."""

import os
from pathlib import Path

import pytest

from trainjob.launch.machine import memory_bytes, num_cores


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    for controller in ("cpu", "memory"):
        (tmp_path / controller).mkdir()
    return tmp_path


def test_the_cores_of_an_older_container_count(
    mount: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    (mount / "cpu" / "cpu.cfs_quota_us").write_text("250000\n")
    (mount / "cpu" / "cpu.cfs_period_us").write_text("100000\n")

    assert num_cores(mount) == 3


def test_the_memory_of_an_older_container_counts(mount: Path) -> None:
    (mount / "memory" / "memory.limit_in_bytes").write_text(f"{64 * 2**20}\n")

    assert memory_bytes(mount) == 64 * 2**20


def test_an_older_container_without_limits_has_the_machine(mount: Path) -> None:
    (mount / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (mount / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (mount / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")

    assert num_cores(mount) == len(os.sched_getaffinity(0))
    assert memory_bytes(mount) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
