"""Tell a Prefect server what trainjob has: pools, blocks, automations and deployments.

Running it again changes nothing that is already right, and overwrites no template that a person
has changed. ``python -m deployments.register [POOL=KIND ...]``, or ``make register``.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence

from prefect.client.orchestration import SyncPrefectClient

from deployments.automations import default_dead_after_s, register_automations
from deployments.changes import Change
from deployments.flow_deployments import deploy_all
from deployments.quotas import Quota, ensure_quotas, quotas_of_machine
from deployments.starter_blocks import register_blocks
from deployments.webhooks import OFF, check_url, register_webhook
from deployments.work_pools import KINDS, POOLS, Kind, PoolName, PoolSpec, ensure_pool
from deployments.work_queues import ensure_queues, other_pools
from flows.server_client import configured_server
from trainjob.errors import TrainjobError


def main(argv: Sequence[str] | None = None) -> int:
    """Register everything, with a line for each thing, and return the exit code."""
    arguments = _parser().parse_args(argv)
    kinds: dict[PoolName, Kind] = dict(arguments.kinds)
    pools = _pools(kinds, arguments.image)
    try:
        webhook = _webhook(arguments.webhook)
        quotas = quotas_of_machine()
        with configured_server() as client:
            changes = register(client, pools, quotas, force=arguments.force, webhook=webhook)
            for change in changes:
                sys.stdout.write(f"{change}\n")
                sys.stdout.flush()
    except TrainjobError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def register(
    client: SyncPrefectClient,
    pools: Sequence[PoolSpec],
    quotas: Mapping[Quota, int],
    *,
    force: bool = False,
    webhook: str | None = None,
) -> Iterator[Change]:
    """Register pools, quotas, blocks, automations, webhook and deployments, in this order.

    Args:
        client: The server to tell.
        pools: What the pools are to be.
        quotas: How many runs may go on at once.
        force: Whether templates of pools, limits and flavors that a person has changed are
            replaced, too.
        webhook: The url to call at every event of a run; ``off``: none any more; None: as it is.

    Yields:
        What became of each thing, when it has.

    Raises:
        TrainjobError: If something cannot be as it was asked for.
    """
    for spec in pools:
        yield ensure_pool(client, spec, force=force)
        yield ensure_queues(client, spec.name)
    for name in other_pools(client, known=[spec.name for spec in pools]):
        yield ensure_queues(client, name)
    yield from ensure_quotas(client, quotas, force=force)
    yield from register_blocks(client, force=force)
    yield from register_automations(client, default_dead_after_s())
    yield from register_webhook(client, webhook)
    yield from deploy_all(client)


def _pools(kinds: dict[PoolName, Kind], image: str | None) -> list[PoolSpec]:
    """Return what the pools are to be; the image is for those that are named, or for all."""
    with_image = kinds or POOLS
    return [
        PoolSpec(name, kinds.get(name), image if name in with_image else None) for name in POOLS
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.register",
        description="Register pools, blocks, automations and deployments with the server that "
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
        "--force",
        action="store_true",
        help="replace templates, limits and flavors that were changed by hand, too",
    )
    parser.add_argument(
        "--webhook",
        metavar=f"URL|-|{OFF}",
        help="call this url when a run starts, ends, is restarted or stalls; - reads the url from "
        f"standard input, {OFF} removes it; not given: as it is",
    )
    return parser


def _webhook(word: str | None) -> str | None:
    """Return the url that is meant; one that is typed as an argument can be seen by others."""
    if word is None:
        return None
    return check_url(sys.stdin.readline().strip() if word == "-" else word)


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
