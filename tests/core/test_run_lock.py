"""One process at a time works for a run on a machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainjob.errors import TrainjobError
from trainjob.run_lock import alone_in
from trainjob.workspace import Workspace


def test_a_second_process_is_refused_in_the_end(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)

    with (
        alone_in(workspace, grace_s=0),
        pytest.raises(TrainjobError, match="another process of this run"),
        alone_in(workspace, grace_s=0, timeout_s=0),
    ):
        pytest.fail("two are in")


def test_the_next_process_goes_on_when_the_first_has_ended(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with alone_in(workspace, grace_s=0):
        pass

    with alone_in(workspace, grace_s=0, timeout_s=0) as lock:
        assert os.fstat(lock)


def test_a_child_that_inherits_the_lock_holds_the_workspace(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with alone_in(workspace, grace_s=0) as lock:
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock]
        )
    with child:
        with pytest.raises(TrainjobError), alone_in(workspace, grace_s=0, timeout_s=0):
            pytest.fail("two are in")
        child.kill()
        child.wait()

        with alone_in(workspace, grace_s=0, timeout_s=0):
            pass
