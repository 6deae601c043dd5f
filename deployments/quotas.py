"""How many runs may go on at once: in a pool or queue, with a flavor, with a tag such as a team's.

``quotas.yaml`` in the folder of the registry, beside ``flavors.yaml``, says so::

    pools: {gpu: 8, gpu/low: 2}      # a queue after its pool
    flavors: {8C40G V100*1: 4}
    tags: {vision: 2}

Limits of pools and queues are Prefect's own, and runs beyond them wait in their queue. Those of
flavors and tags are global concurrency limits, which runs take by themselves (`flows.quotas`). A
variable on the server keeps what was set here, by which a person's own changes are known.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import (
    VariableCreate,
    VariableUpdate,
    WorkPoolUpdate,
)
from prefect.client.schemas.objects import WorkQueue
from prefect.exceptions import ObjectNotFound
from prefect.types import BANNED_CHARACTERS
from pydantic import Field, ValidationError

from deployments.changes import Change
from flows.quotas import flavor_quota, tag_quota
from flows.registry_place import chosen_registry
from trainjob.errors import JobError, Problem
from trainjob.flavor_catalogue import flavors_of
from trainjob.flavors import Flavor
from trainjob.job_problems import problems_of
from trainjob.jobfile import read_job_file
from trainjob.registry.folder import registry_folder, registry_of_machine
from trainjob.spec import Line, Spec

_FILE = "quotas.yaml"
_VARIABLE = "trainjob_quotas"

_Count = Annotated[int, Field(ge=1)]


class _Quotas(Spec):
    """What the file says; each number is how many runs may go on at once."""

    pools: dict[Line, _Count] = Field(default_factory=dict)
    flavors: dict[Line, _Count] = Field(default_factory=dict)
    tags: dict[Line, _Count] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Quota:
    """Something that has a limit on the server.

    Attributes:
        kind: ``pool``, ``queue`` or ``limit``, which is a global concurrency limit.
        name: Its name; of a queue after that of its pool and a slash.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        """Return what a person and the variable call it."""
        return f"quota of the {self.kind} {self.name}"


def quotas_of_machine() -> dict[Quota, int] | None:
    """Return the quotas in the file of this machine; None: it has none, and nothing to say of them.

    Raises:
        TrainjobError: With all mistakes in the file, or if the flavors it names cannot be read.
    """
    file = registry_folder() / _FILE
    return _read(file) if file.exists() else None


def ensure_quotas(
    client: SyncPrefectClient, wanted: Mapping[Quota, int], *, force: bool = False
) -> Iterator[Change]:
    """Set the limits on the server as wanted; one that a person set otherwise is left.

    Args:
        client: The server to tell; it has the pools and queues.
        wanted: How many runs may go on at once. What was set before and is not named now gets no
            limit.
        force: Whether limits that a person has set are replaced, too.

    Yields:
        What became of each.
    """
    variable = client.read_variable_by_name(_VARIABLE)
    before = cast(dict[str, int], variable.value if variable else {})
    known = dict(before)
    gone = [quota for quota in map(_named, before) if quota not in wanted]
    for quota in [*wanted, *gone]:
        new = wanted.get(quota)
        try:
            current = _limit_of(client, quota)
        except ObjectNotFound:
            yield Change("left", str(quota), f"there is no such {quota.kind}")
            continue
        if current == new:
            yield Change("left", str(quota))
        elif current != before.get(str(quota)) and not force:
            is_now = "no limit" if current is None else current
            yield Change("left", str(quota), f"{is_now}, set by hand; --force replaces it")
            continue
        else:
            _SETTERS[quota.kind](client, quota.name, new)
            yield _changed(quota, current, new)
        known.pop(str(quota), None)
        known |= {} if new is None else {str(quota): new}
    if variable is None and known:
        client.create_variable(VariableCreate(name=_VARIABLE, value=known))
    elif known != before:
        client.update_variable(VariableUpdate(name=_VARIABLE, value=known))


def _changed(quota: Quota, current: int | None, new: int | None) -> Change:
    if new is None:
        return Change("removed", str(quota), "no limit any more")
    said = f"{new} {'run' if new == 1 else 'runs'} at once"
    return Change("created" if current is None else "changed", str(quota), said)


def _read(file: Path) -> dict[Quota, int]:
    data = read_job_file(file, "quotas")
    try:
        said = _Quotas.model_validate(data)
    except ValidationError as error:
        raise JobError(str(file), problems_of(error, _Quotas, data)) from error
    if problems := [*_name_problems(said), *_flavor_problems(said.flavors)]:
        raise JobError(str(file), problems)
    pools = {Quota("queue" if "/" in name else "pool", name): n for name, n in said.pools.items()}
    flavors = {Quota("limit", flavor_quota(text)): n for text, n in said.flavors.items()}
    return pools | flavors | {Quota("limit", tag_quota(tag)): n for tag, n in said.tags.items()}


def _name_problems(said: _Quotas) -> Iterator[Problem]:
    """Find names that no limit of Prefect can have, or that its client cannot ask for."""
    banned = [*BANNED_CHARACTERS, "#", "?"]
    asked = f"a name without {' '.join(banned)}, which no limit of Prefect can have"
    for field, names in (("flavors", said.flavors), ("tags", said.tags)):
        for name in names:
            if any(character in name for character in banned):
                yield Problem(f"{field}.{name}", asked, repr(name), "use another name")


def _flavor_problems(names: Iterable[str]) -> Iterator[Problem]:
    """Find flavors that no job can have: a limit by a name with a typo would hold nothing."""
    named = [name for name in names if not _is_size(name)]
    if not named:
        return
    # What is only in the file is on the server once it is registered, after the quotas.
    places = registry_of_machine().place, chosen_registry().place
    catalogues = [flavors_of(place) for place in places]
    asked = "a size such as 2c4g or the name of a flavor"
    do = f"correct it, or name the flavor in {catalogues[0].place!r}"
    for name in named:
        if not any(catalogue.names(name) for catalogue in catalogues):
            yield Problem(f"flavors.{name}", asked, repr(name), do)


def _is_size(text: str) -> bool:
    try:
        Flavor.parse(text)
    except ValueError:
        return False
    return True


def _named(text: str) -> Quota:
    """Return the quota that the variable calls so."""
    kind, _, name = text.removeprefix("quota of the ").partition(" ")
    return Quota(kind, name)


def _limit_of(client: SyncPrefectClient, quota: Quota) -> int | None:
    """Return how many runs the server allows now; None: any number.

    Raises:
        ObjectNotFound: If there is no such pool or queue.
    """
    if quota.kind == "pool":
        return client.read_work_pool(quota.name).concurrency_limit
    if quota.kind == "queue":
        return _queue(client, quota.name).concurrency_limit
    try:
        return client.read_global_concurrency_limit_by_name(quota.name).limit
    except ObjectNotFound:
        return None


def _set_pool(client: SyncPrefectClient, name: str, limit: int | None) -> None:
    client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit))


def _set_queue(client: SyncPrefectClient, name: str, limit: int | None) -> None:
    client.update_work_queue(_queue(client, name).id, concurrency_limit=limit)


def _set_limit(client: SyncPrefectClient, name: str, limit: int | None) -> None:
    if limit is None:
        client.delete_global_concurrency_limit_by_name(name)
        return
    client.upsert_global_concurrency_limit_by_name(name, limit)


def _queue(client: SyncPrefectClient, name: str) -> WorkQueue:
    pool, _, queue = name.partition("/")
    return client.read_work_queue_by_name(queue, work_pool_name=pool)


_SETTERS: Mapping[str, Callable[[SyncPrefectClient, str, int | None], None]] = {
    "pool": _set_pool,
    "queue": _set_queue,
    "limit": _set_limit,
}
