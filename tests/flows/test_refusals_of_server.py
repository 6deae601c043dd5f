"""What a server refuses: told with its own words, and with a login only where that may help."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.server import no_answer, reach_server
from flows.server_client import configured_server
from trainjob.errors import TrainjobError


def test_what_is_not_allowed_to_anyone_is_told_in_the_words_of_the_server(
    prefect_server: str,
) -> None:
    with pytest.raises(TrainjobError) as told, configured_server() as client:
        client.create_work_pool(WorkPoolCreate(name="prefect-x", type="process"))

    assert "answered POST /api/work_pools/ with 403 Forbidden: " in str(told.value)
    assert "Work pools starting with 'Prefect' are reserved" in str(told.value)
    assert "if it refuses who asks, set PREFECT_API_AUTH_STRING to the one of the server" in str(
        told.value
    )


class _AnswersNotFound(BaseHTTPRequestHandler):
    """Answers as Prefect's server does beside its API."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def url_without_api() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _AnswersNotFound)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_url_that_is_not_that_of_the_api_is_told_as_such(url_without_api: str) -> None:
    with temporary_settings({PREFECT_API_URL: url_without_api}):
        with pytest.raises(TrainjobError) as of_command, configured_server():
            pass
        with pytest.raises(TrainjobError) as of_run:
            reach_server()

    assert str(of_command.value) == str(of_run.value)
    assert str(of_run.value) == (
        f"the server at {url_without_api!r} answers, but not as Prefect's API (404 Not Found); "
        "correct PREFECT_API_URL, which ends in /api, such as http://127.0.0.1:4200/api"
    )


def test_a_proxy_whose_server_is_away_is_told_as_a_server_that_does_not_answer() -> None:
    request = httpx.Request("GET", "http://127.0.0.1:4200/api/health")
    away = httpx.HTTPStatusError(
        "502 Bad Gateway", request=request, response=httpx.Response(502, request=request)
    )

    assert str(no_answer(away, "start it")).endswith("does not answer (502 Bad Gateway); start it")
