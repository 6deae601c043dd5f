"""Which files of a sharded dataset a node needs. Asked by staging, for ``shard_by: rank``."""

from collections.abc import Sequence

from trainjob.storage.listing import Entry


def share_of(files: Sequence[Entry], node: int, num_nodes: int) -> tuple[Entry, ...]:
    """Return the files of one node: every `num_nodes`-th by sorted path, from the `node`-th on.

    The shares are disjoint, are all files together, and differ by at most one in their number. They
    depend on the paths alone, so that all nodes find the same shares without talking.

    Args:
        files: All files of the dataset, in any order.
        node: Which node, counted from 0.
        num_nodes: How many there are.

    Raises:
        ValueError: If there is no such node.
    """
    if not 0 <= node < num_nodes:
        raise ValueError(f"asked for the share of node {node}, found {num_nodes} nodes from 0 on")
    return tuple(sorted(files, key=lambda file: file.path)[node::num_nodes])
