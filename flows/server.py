"""The Prefect server of this process: the one that is configured, or a temporary one."""

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from http import HTTPStatus
from pathlib import Path

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

from trainjob.errors import TrainjobError

_LIFELINE = Path(__file__).with_name("lifeline.py")
_MAX_ANSWER_CHARS = 2000
_ANOTHER_VERSION = (
    "the deployment may be of another version: make it anew, by `make register` or the "
    "`algorithm deploy` or `schedule` that made it"
)
_ADVICE = {
    HTTPStatus.FORBIDDEN: (
        "if it refuses who asks, set PREFECT_API_AUTH_STRING to the one of the server"
    ),
    HTTPStatus.NOT_FOUND: "it was deleted meanwhile",
    HTTPStatus.CONFLICT: _ANOTHER_VERSION,
    HTTPStatus.UNPROCESSABLE_ENTITY: _ANOTHER_VERSION,
}
_lifelines: dict[int, "subprocess.Popen[bytes]"] = {}


def reach_server() -> None:
    """Start Prefect's temporary server if none is configured, or see that the server answers.

    To be called before anything else makes a Prefect client. A temporary server belongs to the
    process group of the terminal, and Ctrl-C would end it before it has heard how the run ended. So
    it is started by a thread that blocks SIGINT, which a child process inherits
    (pthread_sigmask(3)); Prefect 3.8 ends it by SIGTERM.

    Raises:
        TrainjobError: If a server is configured and does not answer, or refuses who asks; or if the
            temporary one does not start in time.
    """
    with ThreadPoolExecutor(1, "start-server", _block_sigint) as thread:
        problem = thread.submit(copy_context().run, _problem).result()
    _end_with_this_process()
    if problem is not None:
        raise problem


def refusal(response: httpx.Response) -> TrainjobError:
    """Return the error that the configured server does not do as asked, with what to do about it.

    Args:
        response: Its answer.
    """
    url, status = server_url(), HTTPStatus(response.status_code)
    if status is HTTPStatus.UNAUTHORIZED:
        return TrainjobError(
            f"the Prefect server at {url!r} refuses who asks ({status} {status.phrase}); set "
            "PREFECT_API_AUTH_STRING to the one of the server"
        )
    asked = f"{response.request.method} {response.request.url.path}"
    advice = f"; {_ADVICE[status]}" if status in _ADVICE else ""
    return TrainjobError(
        f"the Prefect server at {url!r} answered {asked} with {status} {status.phrase}: "
        f"{response.text[:_MAX_ANSWER_CHARS]}{advice}"
    )


def no_answer(problem: Exception, do: str) -> TrainjobError:
    """Return the error that the configured server does not answer, with what to do about it.

    Args:
        problem: What came instead. An answer that there is no such thing says that the url is
            wrong; one of the 5xx, as of a proxy, that the server is away.
        do: What to do if there was no answer.
    """
    if isinstance(problem, httpx.HTTPStatusError) and problem.response.is_client_error:
        return _no_api(problem.response)
    why = without_password(str(problem))  # may have the url in it
    return TrainjobError(f"the Prefect server at {server_url()!r} does not answer ({why}); {do}")


def server_url() -> str:
    """Return the url of the server that is configured, to be shown."""
    return without_password(PREFECT_API_URL.value() or "")


def without_password(text: str) -> str:
    """Return a text without who logs in at the urls in it; a password may have / or @ in it."""
    return re.sub(r"//[^\s'\"]*@", "//", text)


def _no_api(response: httpx.Response) -> TrainjobError:
    """Return the error that what answers at the configured url is not Prefect's API."""
    status = HTTPStatus(response.status_code)
    return TrainjobError(
        f"the server at {server_url()!r} answers, but not as Prefect's API ({status} "
        f"{status.phrase}); correct PREFECT_API_URL, which ends in /api, such as "
        "http://127.0.0.1:4200/api"
    )


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


def _problem() -> TrainjobError | None:
    try:
        return _problem_of_server()
    except RuntimeError as error:  # what Prefect raises if a temporary server does not start
        if PREFECT_API_URL.value():
            raise
        return _not_started(str(error))


def _not_started(why: str) -> TrainjobError:
    """Return the error that the temporary server is not there.

    Args:
        why: In the words of Prefect, which cannot tell one that is slow from one that has ended at
            each of several starts, as with a database that it cannot use (3.8.8).
    """
    found_s = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    return TrainjobError(
        f"Prefect's temporary server did not start within {found_s} s ({why.rstrip('. ')}); if "
        "this machine is busy, try again later or give it more time by "
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS; else start a server (`make serve`), "
        "which says what is wrong with it, and set PREFECT_API_URL"
    )


def _problem_of_server() -> TrainjobError | None:
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
        if problem is not None:
            return no_answer(problem, "start it, or unset PREFECT_API_URL to use a temporary one")
        try:
            client.api_version()  # its health, a server tells everyone
        except httpx.HTTPStatusError as error:
            return refusal(error.response)
    return None
