"""The Prefect server of this process: the one that is configured, or a temporary one."""

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from trainjob.errors import TrainjobError

_LIFELINE = Path(__file__).with_name("lifeline.py")
_lifelines: dict[int, "subprocess.Popen[bytes]"] = {}


def reach_server() -> None:
    """Start Prefect's temporary server if none is configured, or see that the server answers.

    To be called before anything else makes a Prefect client. A temporary server belongs to the
    process group of the terminal, and Ctrl-C would end it before it has heard how the run ended. So
    it is started by a thread that blocks SIGINT, which a child process inherits
    (pthread_sigmask(3)); Prefect 3.8 ends it by SIGTERM.

    Raises:
        TrainjobError: If a server is configured and does not answer.
    """
    with ThreadPoolExecutor(1, "start-server", _block_sigint) as thread:
        problem = thread.submit(_health).result()
    _end_with_this_process()
    if problem is not None:
        raise no_answer(problem, "start it, or unset PREFECT_API_URL to use a temporary one")


def no_answer(problem: Exception, do: str) -> TrainjobError:
    """Return the error that the configured server does not answer, with what to do about it."""
    why = without_password(str(problem))  # may have the url in it
    return TrainjobError(f"the Prefect server at {server_url()!r} does not answer ({why}); {do}")


def server_url() -> str:
    """Return the url of the server that is configured, to be shown."""
    return without_password(PREFECT_API_URL.value() or "")


def without_password(text: str) -> str:
    """Return a text without who logs in at the urls in it; a password may have / or @ in it."""
    return re.sub(r"//[^\s'\"]*@", "//", text)


def _end_with_this_process() -> None:
    """Have the temporary server ended even if this process is killed (Prefect ends it at exit)."""
    if PREFECT_API_URL.value():
        return
    # More than a second, which a run with a server of its own need not wait for.
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer().server_process
    if server is not None and server.pid not in _lifelines:
        _lifelines[server.pid] = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_LIFELINE), str(server.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )


def _block_sigint() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _health() -> Exception | None:
    with get_client(sync_client=True) as client:
        return client.api_healthcheck()
