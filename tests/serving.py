"""A real server and worker, as `make serve` starts them."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tests.ports import free_port
from tests.prefect_homes import fill_home
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent


class Serve:
    """`python -m deployments.serve` on a free port, with its data below `folder`.

    Args:
        folder: Where everything of it goes.
        more: More of its environment.
    """

    def __init__(self, folder: Path, more: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        env = {
            **os.environ,
            **(more or {}),
            "PREFECT_HOME": str(fill_home(folder / "prefect")),
            "PREFECT_SERVER_API_PORT": str(self.port),
            "TRAINJOB_WORKDIR": str(folder / "runs"),
        }
        self.log = folder / "serve.log"
        command = [sys.executable, "-m", "deployments.serve"]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=output, stderr=output
            )

    def wait_until_ready(self) -> None:
        """Wait for three starts, each for itself: server, registration and worker."""
        for word in ("server   ", "worker   ", "Worker 'ProcessWorker"):
            wait_for(partial(self._has_said, word), self.process, self.log)

    def _has_said(self, word: str) -> bool:
        return word in self.log.read_text()

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port)):
                return True
        except ConnectionRefusedError:
            return False


def wait_for(
    condition: Callable[[], bool],
    process: "subprocess.Popen[bytes] | None" = None,
    log: Path | None = None,
) -> None:
    def holds() -> bool:
        ended = process is not None and process.poll() is not None
        assert not ended, log.read_text() if log else "the process ended"
        return condition()

    wait_until(holds, said=lambda: log.read_text() if log else "not in time")
