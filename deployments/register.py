"""Tell a Prefect server what trainjob has: pools, block type, automations and deployments.

Running it again changes nothing that is already right, and overwrites no template that a person
has changed. ``python -m deployments.register [POOL=KIND ...]``, or ``make register``.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound

from blocks.object_store import ObjectStore
from deployments.automations import default_dead_after_s, register_automations
from deployments.changes import Change
from deployments.flow_deployments import deploy_all
from deployments.work_pools import KINDS, POOLS, Kind, PoolName, PoolSpec, ensure_pool
from flows.server_client import configured_server
from trainjob.errors import TrainjobError


def main(argv: Sequence[str] | None = None) -> int:
    """Register everything, with a line for each thing, and return the exit code."""
    arguments = _parser().parse_args(argv)
    kinds: dict[PoolName, Kind] = dict(arguments.kinds)
    pools = _pools(kinds, arguments.image)
    try:
        with configured_server() as client:
            for change in register(client, pools, force=arguments.force):
                sys.stdout.write(f"{change}\n")
                sys.stdout.flush()
    except TrainjobError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def register(
    client: SyncPrefectClient, pools: Sequence[PoolSpec], *, force: bool = False
) -> Iterator[Change]:
    """Register pools, block type, automations and deployments, in this order.

    Args:
        client: The server to tell.
        pools: What the pools are to be.
        force: Whether templates of pools that a person has changed are replaced, too.

    Yields:
        What became of each thing, when it has.

    Raises:
        TrainjobError: If something cannot be as it was asked for.
    """
    for spec in pools:
        yield ensure_pool(client, spec, force=force)
    yield _register_block_type(client)
    yield from register_automations(client, default_dead_after_s())
    yield from deploy_all(client)


def _pools(kinds: dict[PoolName, Kind], image: str | None) -> list[PoolSpec]:
    """Return what the pools are to be; the image is for those that are named, or for all."""
    with_image = kinds or POOLS
    return [
        PoolSpec(name, kinds.get(name), image if name in with_image else None) for name in POOLS
    ]


def _register_block_type(client: SyncPrefectClient) -> Change:
    what = f"block type {ObjectStore.get_block_type_name()!r}"
    try:
        client.read_block_type_by_slug(ObjectStore.get_block_type_slug())
    except ObjectNotFound:
        ObjectStore.register_type_and_schema()
        return Change("created", what)
    try:
        client.read_block_schema_by_checksum(ObjectStore._calculate_schema_checksum())
    except ObjectNotFound:
        ObjectStore.register_type_and_schema()
        return Change("changed", what)
    return Change("left", what)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.register",
        description="Register pools, block type, automations and deployments with the server that "
        "PREFECT_API_URL names.",
    )
    parser.add_argument(
        "kinds",
        nargs="*",
        type=_kind_of_pool,
        metavar="POOL=KIND",
        help=f"one of {', '.join(POOLS)} is of this kind: {', '.join(KINDS)}; not named: as it is",
    )
    parser.add_argument(
        "--image", help="the image that containers of the named pools, or of all, start in"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace templates that were changed by hand, too"
    )
    return parser


def _kind_of_pool(word: str) -> tuple[PoolName, Kind]:
    name, _, kind = word.partition("=")
    for known_name in POOLS:
        for known_kind in KINDS:
            if (name, kind) == (known_name, known_kind):
                return known_name, known_kind
    raise argparse.ArgumentTypeError(
        f"{word!r}; write one of {', '.join(POOLS)}, =, and one of {', '.join(KINDS)}, "
        "such as gpu=kubernetes"
    )


if __name__ == "__main__":
    sys.exit(main())
