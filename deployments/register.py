"""Tell a Prefect server what trainjob has: pools, blocks, automations and deployments.

Running it again changes nothing that is already right, and overwrites no template that a person
has changed. ``python -m deployments.register [POOL=[LIKE:]KIND ...]``, or ``make register``.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from prefect.client.orchestration import SyncPrefectClient

from deployments.automations import default_dead_after_s, register_automations
from deployments.changes import Change
from deployments.flow_deployments import deploy_all
from deployments.quotas import Quota, ensure_quotas, quotas_of_machine
from deployments.stale_forms import stale_forms
from deployments.starter_blocks import (
    check_store,
    register_blocks,
    register_store,
    write_starter_flavors,
)
from deployments.webhooks import OFF, check_url, register_webhook
from deployments.work_pools import KINDS, POOLS, PoolSpec, check_image, ensure_pool
from deployments.work_queues import ensure_queues, other_pools
from flows.server_client import configured_server
from trainjob.errors import TrainjobError

_OWN_NAME = re.compile("(?!prefect)[a-z0-9][a-z0-9_-]*")
"""What a deployment, a queue and a command line can all name, and Prefect does not keep for itself
(server/api/workers.py of 3.8.8)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Register everything, with a line for each thing, and return the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        pools = _pools(arguments.pools, arguments.image)
        webhook = _webhook(arguments.webhook)
        quotas = quotas_of_machine()
        with configured_server() as client:
            if arguments.starter_flavors:
                _say(write_starter_flavors())
            changes = register(
                client,
                pools,
                quotas,
                force=arguments.force,
                store=arguments.store,
                webhook=webhook,
            )
            for change in changes:
                _say(change)
    except TrainjobError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def register(
    client: SyncPrefectClient,
    pools: Sequence[PoolSpec],
    quotas: Mapping[Quota, int] | None,
    *,
    force: bool = False,
    store: str | None = None,
    webhook: str | None = None,
) -> Iterator[Change]:
    """Register pools, quotas, blocks, automations, webhook and deployments, in this order.

    Args:
        client: The server to tell.
        pools: What the pools are to be.
        quotas: How many runs may go on at once; None: whatever the server has stays.
        force: Whether templates of pools, limits, flavors and the store are replaced, too, if a
            person has changed them.
        store: What jobs are to call the store of the AWS_* environment; None: it is not saved.
        webhook: The url to call at every event of a run; ``off``: none any more; None: as it is.

    Yields:
        What became of each thing, when it has.

    Raises:
        TrainjobError: If something cannot be as it was asked for.
    """
    check_image(client, pools)
    if store is not None:
        check_store(client, store)
    for spec in pools:
        yield ensure_pool(client, spec, force=force)
        yield ensure_queues(client, spec.name)
    for name in other_pools(client, known=[spec.name for spec in pools]):
        yield ensure_queues(client, name)
    if quotas is not None:
        yield from ensure_quotas(client, quotas, force=force)
    yield from register_blocks(client, force=force)
    if store is not None:
        yield register_store(client, store, force=force)
    yield from register_automations(client, default_dead_after_s())
    yield from register_webhook(client, webhook)
    yield from deploy_all(client)
    yield from stale_forms(client)


def _say(change: Change) -> None:
    sys.stdout.write(f"{change}\n")
    sys.stdout.flush()


def _pools(named: Sequence[PoolSpec], image: str | None) -> list[PoolSpec]:
    """Return what the pools are to be; the image is for those that are named, or for all."""
    for first, second in combinations(named, 2):
        if first.name == second.name:
            raise TrainjobError(
                f"asked for the pool {first.name!r} of type {first.kind}, found that it is named "
                f"again, of type {second.kind}; name it once"
            )
    wanted = {spec.name: spec for spec in (*(PoolSpec(name, name) for name in POOLS), *named)}
    with_image = [spec.name for spec in named] or POOLS
    return [
        replace(spec, image=image if spec.name in with_image else None) for spec in wanted.values()
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.register",
        description="Register pools, blocks, automations and deployments with the server that "
        "PREFECT_API_URL names.",
    )
    parser.add_argument(
        "pools",
        nargs="*",
        type=_pool,
        metavar="POOL=[LIKE:]KIND",
        help=f"{', '.join(POOLS)}, or one of your own that is like one of these, is of this kind: "
        f"{', '.join(KINDS)}; not named: as it is",
    )
    parser.add_argument(
        "--image", help="the image that containers of the named pools, or of all, start in"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace templates, limits, flavors and the store if changed by hand, too",
    )
    parser.add_argument(
        "--store",
        type=_block_name,
        metavar="NAME",
        help="save the store of the AWS_* variables by this name, unless one has it",
    )
    parser.add_argument(
        "--starter-flavors",
        action="store_true",
        help="begin with the flavors of examples/flavors.yaml if this machine has none",
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


def _block_name(word: str) -> str:
    if not re.fullmatch("[a-z0-9-]+", word):
        raise argparse.ArgumentTypeError(f"{word!r}; write lowercase letters, digits and dashes")
    return word


def _pool(word: str) -> PoolSpec:
    name, _, what = word.partition("=")
    is_own = name not in POOLS and _OWN_NAME.fullmatch(name) is not None
    for like in POOLS:
        for kind in KINDS:
            if (name, what) == (like, kind) or (is_own and what == f"{like}:{kind}"):
                return PoolSpec(name, like, kind)
    raise argparse.ArgumentTypeError(
        f"{word!r}; write one of {', '.join(POOLS)}, =, and one of {', '.join(KINDS)}, "
        "such as gpu=kubernetes, or vision=gpu:kubernetes for a pool of your own; "
        "names that begin with prefect are kept by Prefect"
    )


if __name__ == "__main__":
    sys.exit(main())
