"""The start of the supervisor, interrupted by a signal handler that raises."""

import signal
import subprocess

import pytest

from tests.interruptions import Stop
from tests.launch.conftest import marked_processes
from tests.waiting import wait_until
from trainjob.launch.training import run_training


def test_an_interruption_while_the_supervisor_is_started_leaves_nothing(make_launch, monkeypatch):
    launch = make_launch("import time\ntime.sleep(60)\n")
    started: list[subprocess.Popen[bytes]] = []

    class InterruptedPopen(subprocess.Popen[bytes]):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            if "supervisor.py" in str(self.args):
                started.append(self)
                wait_until(launch.rank_log(0).exists)
                raise Stop

    monkeypatch.setattr(subprocess, "Popen", InterruptedPopen)

    with pytest.raises(Stop):
        run_training(launch)

    assert not marked_processes(launch)
    with started[0] as supervisor:
        assert supervisor.wait() == -signal.SIGKILL
