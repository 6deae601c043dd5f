"""A client of the Prefect server that is configured, whose troubles are told in one message."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import PREFECT_API_URL

from flows.server import no_answer, refusal, server_url
from trainjob.errors import TrainjobError


@contextmanager
def configured_server() -> Iterator[SyncPrefectClient]:
    """Give a client of the server that is configured; a temporary one would know of no run.

    Raises:
        TrainjobError: If none is configured, or it does not answer, or it does not as asked; so in
            the whole block.
    """
    if not PREFECT_API_URL.value():
        raise TrainjobError(
            "asked for a Prefect server, found that PREFECT_API_URL is not set; set it, such as "
            "PREFECT_API_URL=http://127.0.0.1:4200/api after `make serve`"
        )
    try:
        with get_client(sync_client=True) as client:
            problem = client.api_healthcheck()
            if problem is not None:
                raise no_answer(problem, "start it, or correct PREFECT_API_URL")
            yield client
    except httpx.HTTPStatusError as error:
        raise refusal(error.response) from error
    except (ObjectNotFound, ObjectAlreadyExists) as error:
        if not isinstance(error.http_exc, httpx.HTTPStatusError):
            raise
        raise refusal(error.http_exc.response) from error
    except httpx.InvalidURL:
        raise TrainjobError(  # without its cause, which may quote the password
            f"asked for the Prefect server at {server_url()!r}, found that PREFECT_API_URL is no "
            "url; write / and @ of a password as %2F and %40"
        ) from None
    except httpx.TransportError as error:
        raise no_answer(error, "try again when it is back") from error
