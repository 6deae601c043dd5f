"""The work pools cpu, gpu, npu and such as are like them, and which infrastructure each stands for.

Their base job templates are data, one file a kind of infrastructure in `deployments/pools`. A
template carries a fingerprint of itself, by which a later registration knows whether a person has
changed it since.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import WorkPool
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from deployments.changes import Change
from trainjob.errors import TrainjobError

PoolName = Literal["cpu", "gpu", "npu"]
Kind = Literal["process", "docker", "kubernetes"]
POOLS: tuple[PoolName, ...] = get_args(PoolName)
KINDS: tuple[Kind, ...] = get_args(Kind)

_FOLDER = Path(__file__).parent / "pools"
_MARK = "trainjob"
_BY_HAND = "its template was changed by hand; --force replaces it"


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What a pool is to be.

    Attributes:
        name: Name of the pool.
        like: Which of ours has its template; the same name, unless it is a pool of one's own.
        kind: Where its runs are processes; absent, as it is, and a new one of the worker's machine.
        image: Image of its containers; absent, that which it has.
    """

    name: str
    like: PoolName
    kind: Kind | None = None
    image: str | None = None


def base_job_template(kind: Kind, like: PoolName, image: str | None = None) -> dict[str, Any]:
    """Return the base job template of a pool, with its fingerprint.

    Args:
        kind: Where the runs of the pool are processes.
        like: Which of our pools it is, or is like.
        image: The image that containers start in; process pools have none.
    """
    template = cast(dict[str, Any], _pools(kind)[like]["base_job_template"])
    _set_image(template, image)
    return {**template, _MARK: {"fingerprint": _fingerprint(template)}}


def check_image(client: SyncPrefectClient, specs: Sequence[PoolSpec]) -> None:
    """See that an image that was given is for a pool whose runs are containers.

    Raises:
        TrainjobError: If it is for none.
    """
    given = [spec for spec in specs if spec.image]
    if given and all(
        (spec.kind or _present_kind(client, spec.name)) == "process" for spec in given
    ):
        names = ", ".join(spec.name for spec in given)
        raise TrainjobError(
            f"asked for the image {given[0].image!r}, found no pool of containers to start in it "
            f"(of type process: {names}); name one, such as gpu=docker, or leave out --image"
        )


def ensure_pool(client: SyncPrefectClient, spec: PoolSpec, *, force: bool = False) -> Change:
    """Create a pool, or bring its template up to date; its limit and pause stay as they are.

    Args:
        client: The server to tell.
        spec: What the pool is to be.
        force: Whether a template that a person has changed is replaced, too.

    Raises:
        TrainjobError: If the pool exists with another kind, or containers lack an image.
    """
    try:
        pool = client.read_work_pool(spec.name)
    except ObjectNotFound:
        return _create(client, spec)
    kind = _kind_of(pool, spec)
    what = f"pool {pool.name} ({pool.type})"
    if kind is None:
        return Change("left", what, "trainjob has no template for pools of this type")
    current = pool.base_job_template
    image = spec.image or _image_of(current)
    wanted = base_job_template(kind, spec.like, image)
    if current == wanted:
        return Change("left", what)
    if not (force or _is_untouched(current) or _is_of_prefect(client, current)):
        return Change("left", what, _BY_HAND)
    _refuse_no_image(spec.name, kind, image)
    client.update_work_pool(spec.name, WorkPoolUpdate(base_job_template=wanted))
    return Change("changed", what, "its template")


def _present_kind(client: SyncPrefectClient, name: str) -> str:
    """Return the type that a pool has, or would be made with."""
    try:
        return client.read_work_pool(name).type
    except ObjectNotFound:
        return "process"


def _create(client: SyncPrefectClient, spec: PoolSpec) -> Change:
    kind = spec.kind or "process"
    _refuse_no_image(spec.name, kind, spec.image)
    client.create_work_pool(
        WorkPoolCreate(
            name=spec.name,
            type=kind,
            description=_pools(kind)[spec.like]["description"],
            base_job_template=base_job_template(kind, spec.like, spec.image),
        )
    )
    return Change("created", f"pool {spec.name} ({kind})")


def _kind_of(pool: WorkPool, spec: PoolSpec) -> Kind | None:
    """Return what the pool is, None if we have no template for that."""
    if spec.kind not in (None, pool.type):
        raise TrainjobError(
            f"asked for the pool {pool.name!r} of type {spec.kind}, found one of type {pool.type}, "
            f"which stays so; `prefect work-pool delete {pool.name}` and register again"
        )
    return next((kind for kind in KINDS if kind == pool.type), None)


def _refuse_no_image(name: str, kind: Kind, image: str | None) -> None:
    if kind != "process" and not image:
        raise TrainjobError(
            f"asked for the pool {name!r} of type {kind}, found no image for its containers; "
            "give one that holds trainjob, by --image"
        )


def _is_untouched(template: dict[str, Any]) -> bool:
    """Tell whether a template is as a registration, or a worker that came first, has left it."""
    if not template or template == ProcessWorker.get_default_base_job_template():
        return True
    rest = {key: value for key, value in template.items() if key != _MARK}
    return template.get(_MARK) == {"fingerprint": _fingerprint(rest)}


def _is_of_prefect(client: SyncPrefectClient, template: dict[str, Any]) -> bool:
    """Tell whether a template is that of process pools made in the UI; workers' differs (3.8.8)."""
    offered = client.read_worker_metadata().get("prefect", {}).get("process", {})
    return bool(template == offered.get("default_base_job_configuration"))


def _fingerprint(template: dict[str, Any]) -> str:
    """Return a digest of all but the image, which every installation chooses for itself."""
    plain = json.loads(json.dumps(template))
    _set_image(plain, None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _set_image(template: dict[str, Any], image: str | None) -> None:
    """Make an image the default, or none; templates of processes have no such variable."""
    variable = _image_variable(template)
    if variable is not None:
        variable.pop("default", None)
        variable |= {"default": image} if image else {}


def _image_of(template: dict[str, Any]) -> str | None:
    image = (_image_variable(template) or {}).get("default")
    return image if isinstance(image, str) else None


def _image_variable(template: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema of the image; None without one. A person's template has any shape."""
    found: Any = template
    for key in ("variables", "properties", "image"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else None


def _pools(kind: Kind) -> dict[str, Any]:
    return cast(dict[str, Any], yaml.safe_load((_FOLDER / f"{kind}.yaml").read_text()))
