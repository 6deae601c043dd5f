"""The values of saved secrets, Prefect's own blocks of the type Secret, for the ranks of a job.

A job names them, and only tasks and checks load them: parameters of a run can be read by every user
of the API. Prefect's database has them encrypted.

What a run was given may be in its logs, whatever the block holds by then, or if it is gone. So a
run remembers the values in memory (`remembering_secrets`), and loads none to hide them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound

from blocks.object_store import saved_names
from trainjob.env_rules import MIN_SECRET_CHARS
from trainjob.errors import JobError, Problem, StoreUnavailable

_SLUG = "secret"

_given: ContextVar[set[str] | None] = ContextVar("trainjob_given_secrets", default=None)


@contextmanager
def remembering_secrets(given: set[str]) -> Iterator[None]:
    """Put every value that `load_secrets` returns in this block into `given`."""
    token = _given.set(given)
    try:
        yield
    finally:
        _given.reset(token)


def secret_problems(wanted: Mapping[str, str]) -> list[Problem]:
    """Return why `load_secrets` would raise, to be told with what else is wrong with a job."""
    try:
        load_secrets(wanted)
    except JobError as error:
        return list(error.problems)
    except StoreUnavailable as error:
        found, do = (
            f"no answer of Prefect's server ({error.__cause__})",
            "try again when it is there",
        )
        return [Problem("secrets", "saved secrets", found, do, may_pass=True)]
    return []


def load_secrets(wanted: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables with the values of saved secrets.

    Args:
        wanted: By the name of the variable, that of the block.

    Raises:
        JobError: If a block is not there, naming those that are, or what it holds cannot be a
            variable, or not be hidden.
        StoreUnavailable: If the server of Prefect does not answer.
    """
    if not wanted:
        return {}
    try:
        with get_client(sync_client=True) as client:
            found = {variable: _value(client, name) for variable, name in wanted.items()}
            unknown = [variable for variable, value in found.items() if value is None]
            known = saved_names(client, _SLUG) if unknown else []
    except HTTPError as error:
        raise StoreUnavailable(
            f"asked Prefect's server for saved secrets, found no answer ({error}); "
            "try again when the server is there"
        ) from error
    problems = [_unknown(variable, wanted[variable], known) for variable in unknown]
    for variable, value in found.items():
        problems += [] if value is None else _unfit(variable, wanted[variable], value)
    if problems:
        raise JobError("secrets", problems)
    values = {variable: str(value) for variable, value in found.items()}
    given = _given.get()
    if given is not None:
        given.update(values.values())
    return values


def _value(client: SyncPrefectClient, name: str) -> Any:
    """Return what a block holds; None if it is not there."""
    # Not Block.load: it returns a coroutine when a loop happens to run in this thread.
    try:
        return client.read_block_document_by_name(name, _SLUG).data.get("value")
    except ObjectNotFound:
        return None


def _unknown(variable: str, name: str, known: list[str]) -> Problem:
    found = f"only {', '.join(map(repr, known))}" if known else "no saved secret"
    do = (
        "save it as a block of the type Secret in Prefect's UI, or in Python with "
        f"`prefect.blocks.system.Secret(value=...).save({name!r})`"
    )
    return Problem(f"secrets.{variable}", f"the saved secret {name!r}", found, do)


def _unfit(variable: str, name: str, value: Any) -> Iterator[Problem]:
    """Find what cannot be the value of a secret variable; it is not repeated."""
    field, asked = f"secrets.{variable}", f"the saved secret {name!r}"
    # The kernel takes no NUL in an environment.
    if not isinstance(value, str) or not value or "\0" in value:
        found, do = "something else than a text", "save it as one text that is not empty"
        yield Problem(field, asked, found, do)
    elif len(value.strip()) < MIN_SECRET_CHARS:
        found = f"fewer than {MIN_SECRET_CHARS} characters, which stand in numbers and words, too"
        do = "save a longer one; if it is a switch and no secret, give it in env"
        yield Problem(field, asked, found, do)
