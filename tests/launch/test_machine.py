import os
from pathlib import Path

import pytest

from trainjob.launch.machine import memory_bytes, num_cores


def test_without_limits_the_affinity_and_the_memory_of_the_machine_count(tmp_path):
    assert num_cores(tmp_path) == len(os.sched_getaffinity(0))
    assert memory_bytes(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(("quota", "cores"), [("100000 100000", 1), ("50000 100000", 1)])
def test_the_quota_of_a_container_counts(tmp_path: Path, quota: str, cores: int):
    (tmp_path / "cpu.max").write_text(f"{quota}\n")

    assert num_cores(tmp_path) == cores


def test_the_memory_limit_of_a_container_counts(tmp_path):
    (tmp_path / "memory.max").write_text(f"{64 * 2**20}\n")

    assert memory_bytes(tmp_path) == 64 * 2**20


def test_limits_that_say_max_limit_nothing(tmp_path):
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")

    assert num_cores(tmp_path) == len(os.sched_getaffinity(0))
    assert memory_bytes(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
