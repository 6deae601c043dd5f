"""How the supervisor waits where it cannot be told of the end of a process."""

import os
from pathlib import Path

import pytest

from trainjob.launch.supervisor import Supervisor


def test_a_python_that_was_built_without_pidfds_looks_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those that are built on the headers of an old kernel."""
    monkeypatch.delattr(os, "pidfd_open")
    supervisor = Supervisor({}, tmp_path)

    supervisor._wake_at_end_of(os.getpid())

    assert supervisor._looks_often
