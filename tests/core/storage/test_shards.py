"""Shares of a sharded dataset: every file on exactly one node."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainjob.storage.listing import Entry
from trainjob.storage.shards import share_of

SHARDS = [Entry(f"shard-{i:06}.tar", 100 + i, f"v{i}") for i in range(5)]


def test_files_are_dealt_out_by_sorted_path_whatever_the_order_of_the_listing() -> None:
    share = share_of(SHARDS[::-1], 1, 2)

    assert [file.path for file in share] == ["shard-000001.tar", "shard-000003.tar"]


def test_one_node_has_all_files() -> None:
    assert share_of(SHARDS, 0, 1) == tuple(SHARDS)


def test_a_node_beyond_the_last_file_has_none() -> None:
    assert share_of(SHARDS[:1], 1, 2) == ()


@given(names=st.sets(st.text(min_size=1, max_size=4)), num_nodes=st.integers(1, 7))
def test_shares_are_disjoint_complete_and_even(names: set[str], num_nodes: int) -> None:
    files = [Entry(name, 1, "") for name in names]

    shares = [share_of(files, node, num_nodes) for node in range(num_nodes)]

    assert sorted(file.path for share in shares for file in share) == sorted(names)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("node", "num_nodes"), [(2, 2), (-1, 2), (0, 0)])
def test_a_node_that_does_not_exist_is_refused(node: int, num_nodes: int) -> None:
    with pytest.raises(ValueError, match=f"share of node {node}, found {num_nodes} nodes"):
        share_of(SHARDS, node, num_nodes)
