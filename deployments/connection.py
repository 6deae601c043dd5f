"""The server that is configured, for commands that make no sense with a temporary one."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from httpx import HTTPError, HTTPStatusError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL

from trainjob.errors import TrainjobError


@contextmanager
def configured_server() -> Iterator[SyncPrefectClient]:
    """Give a client of the server that ``PREFECT_API_URL`` names, after it has answered once.

    Raises:
        TrainjobError: If none is configured, or it does not answer, or not to us.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise TrainjobError(
            "asked for Prefect's server, found PREFECT_API_URL not set; "
            "set it, such as to http://127.0.0.1:4200/api for the server of `make serve`"
        )
    with get_client(sync_client=True) as client:
        try:
            client.api_version()
        except HTTPError as error:
            raise TrainjobError(_refusal(url, error)) from error
        yield client


def _refusal(url: str, error: HTTPError) -> str:
    shown = re.sub("//[^/@]*@", "//", url)  # without a password
    asked = f"asked the Prefect server at {shown!r}"
    if isinstance(error, HTTPStatusError):
        status = error.response.status_code
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return f"{asked}, found that it wants a login; set PREFECT_API_AUTH_STRING as it has it"
        return f"{asked}, found status {status}; see its log"
    return f"{asked}, found no answer ({error}); start it, or correct PREFECT_API_URL"
