"""Priorities and quotas on a real server: made once, and left to the person who changed them."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import cast
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.exceptions import ObjectNotFound
from prefect.states import Scheduled

from blocks.flavor import FlavorBlock
from deployments.quotas import Quota, ensure_quotas, quotas_of_machine
from deployments.register import main, register
from deployments.work_pools import PoolSpec, ensure_pool
from deployments.work_queues import ensure_queues
from flows.training_job import training_job
from tests.pools import delete_pools
from trainjob.errors import JobError

POOL, LOW = Quota("pool", "cpu"), Quota("queue", "cpu/low")
TEAM = Quota("limit", "trainjob tag vision")


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """Give a client of a server with the pool cpu and its queues, and no quotas."""
    with get_client(sync_client=True) as client:
        delete_pools(client)
        ensure_pool(client, PoolSpec("cpu", "cpu"))
        ensure_queues(client, "cpu")
        yield client
        list(ensure_quotas(client, {}, force=True))
        with suppress(ObjectNotFound):
            client.delete_variable_by_name("trainjob_quotas")
        delete_pools(client)


def priorities(client: SyncPrefectClient) -> dict[str, int]:
    queues = client.read_work_queues(work_pool_name="cpu")
    return {queue.name: queue.priority for queue in queues}


def lines(client: SyncPrefectClient, wanted: dict[Quota, int], *, force: bool = False) -> list[str]:
    return [str(change) for change in ensure_quotas(client, wanted, force=force)]


def limits(client: SyncPrefectClient) -> list[int | None]:
    return [
        client.read_work_pool("cpu").concurrency_limit,
        client.read_work_queue_by_name("low", work_pool_name="cpu").concurrency_limit,
        client.read_global_concurrency_limit_by_name(TEAM.name).limit,
    ]


def test_a_pool_has_a_queue_for_each_priority(client: SyncPrefectClient) -> None:
    made = priorities(client)
    again = ensure_queues(client, "cpu")

    assert made == {"high": 1, "default": 2, "low": 3}
    assert again.verb == "left"
    assert priorities(client) == made


def test_a_queue_that_was_deleted_is_made_again_in_its_place(client: SyncPrefectClient) -> None:
    queue = client.read_work_queue_by_name("high", work_pool_name="cpu")
    client._client.delete(f"/work_pools/cpu/queues/{queue.name}").raise_for_status()

    change = ensure_queues(client, "cpu")

    assert str(change) == "changed  queues high, default, low of the pool cpu: made high again"
    assert sorted(priorities(client), key=priorities(client).__getitem__) == [
        "high",
        "default",
        "low",
    ]


def test_a_pool_of_one_s_own_that_a_deployment_is_on_gets_queues_too(
    client: SyncPrefectClient,
) -> None:
    client.create_work_pool(WorkPoolCreate(name="vision", type="process"))
    flow_id = client.create_flow(training_job)
    deployments = [
        client.create_deployment(flow_id, name, work_pool_name="vision") for name in ("vision", "b")
    ]

    changes = [str(change) for change in islice(register(client, [PoolSpec("cpu", "cpu")], {}), 3)]
    queues = client.read_work_queues(work_pool_name="vision")

    for deployment in deployments:
        client.delete_deployment(deployment)
    client.delete_work_pool("vision")
    assert changes == [
        "left     pool cpu (process)",
        "left     queues high, default, low of the pool cpu",
        "created  queues high, default, low of the pool vision",
    ]
    assert {queue.name: queue.priority for queue in queues} == {"high": 1, "default": 2, "low": 3}


def test_runs_of_a_higher_priority_are_started_first(client: SyncPrefectClient) -> None:
    flow_id = client.create_flow(training_job)
    base = client.create_deployment(flow_id, "queued", work_pool_name="cpu")
    for queue in ("low", "default", "high"):
        client.create_flow_run_from_deployment(base, state=Scheduled(), work_queue_name=queue)

    waiting = client.get_scheduled_flow_runs_for_work_pool("cpu")

    client.delete_deployment(base)
    started = [response.flow_run.work_queue_name for response in waiting]
    assert started == ["high", "default", "low"]


def test_quotas_are_set_once_and_brought_up_to_date(client: SyncPrefectClient) -> None:
    first = lines(client, {POOL: 8, LOW: 2, TEAM: 1})
    set_first = limits(client)
    second = lines(client, {POOL: 8, LOW: 2, TEAM: 1})
    third = lines(client, {POOL: 4, LOW: 2, TEAM: 3})

    assert first == [
        "created  quota of the pool cpu: 8 runs at once",
        "created  quota of the queue cpu/low: 2 runs at once",
        "created  quota of the limit trainjob tag vision: 1 run at once",
    ]
    assert set_first == [8, 2, 1]
    assert {line.split()[0] for line in second} == {"left"}
    assert [line.split()[0] for line in third] == ["changed", "left", "changed"]
    assert limits(client) == [4, 2, 3]


def test_a_quota_that_is_not_in_the_file_any_more_is_removed(client: SyncPrefectClient) -> None:
    lines(client, {POOL: 8, LOW: 2, TEAM: 1})

    removed = lines(client, {TEAM: 1})

    assert removed == [
        "left     quota of the limit trainjob tag vision",
        "removed  quota of the pool cpu: no limit any more",
        "removed  quota of the queue cpu/low: no limit any more",
    ]
    assert limits(client) == [None, None, 1]
    assert lines(client, {TEAM: 1}) == ["left     quota of the limit trainjob tag vision"]


def test_what_a_person_changed_is_left_unless_that_is_forced(client: SyncPrefectClient) -> None:
    lines(client, {POOL: 8, TEAM: 1})
    client.update_work_pool("cpu", WorkPoolUpdate(concurrency_limit=3))
    client.update_global_concurrency_limit(TEAM.name, GlobalConcurrencyLimitUpdate(limit=9))

    left = lines(client, {POOL: 6, LOW: 2})
    kept = limits(client)
    forced = lines(client, {POOL: 6, TEAM: 2, LOW: 2}, force=True)

    assert left[0] == "left     quota of the pool cpu: 3, set by hand; --force replaces it"
    assert left[2] == f"left     {TEAM}: 9, set by hand; --force replaces it"
    assert kept == [3, 2, 9]
    assert [line.split()[0] for line in forced] == ["changed", "changed", "left"]
    assert limits(client) == [6, 2, 2]


def test_a_limit_that_a_person_set_before_is_theirs(client: SyncPrefectClient) -> None:
    client.update_work_pool("cpu", WorkPoolUpdate(concurrency_limit=3))

    left = lines(client, {POOL: 6})
    client.update_work_pool("cpu", WorkPoolUpdate(concurrency_limit=None))

    assert left == ["left     quota of the pool cpu: 3, set by hand; --force replaces it"]


def test_a_quota_of_a_pool_that_is_not_there_is_told(client: SyncPrefectClient) -> None:
    left = lines(client, {Quota("pool", "vison"): 6, Quota("queue", "cpu/urgent"): 1})

    assert left == [
        "left     quota of the pool vison: there is no such pool",
        "left     quota of the queue cpu/urgent: there is no such queue",
    ]


def write_quotas(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(folder))
    (folder / "quotas.yaml").write_text(text)


def test_the_file_names_pools_queues_flavors_and_tags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "pools: {gpu: 8, gpu/low: 2}\nflavors: {8C40G V100*1: 4, lab: 1}\ntags: {vision: 2}\n"
    write_quotas(tmp_path, text, monkeypatch)
    (tmp_path / "flavors.yaml").write_text("lab: {size: 2c4g}\n")

    assert quotas_of_machine() == {
        Quota("pool", "gpu"): 8,
        Quota("queue", "gpu/low"): 2,
        Quota("limit", "trainjob flavor 8c40g v100*1"): 4,
        Quota("limit", "trainjob flavor lab"): 1,
        TEAM: 2,
    }


def test_without_a_file_the_quotas_of_the_server_stay() -> None:
    assert quotas_of_machine() is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pools: {gpu: none}", "pools.gpu: "),
        ("pools: {gpu: 0}", "pools.gpu: "),
        ("teams: {vision: 2}", "teams: "),
        ("tags: {vision/nlp: 2}", "which no limit of Prefect can have, found 'vision/nlp'"),
        ("tags: {c#: 2}", "which no limit of Prefect can have, found 'c#'"),
        ("tags: {'why?': 2}", "which no limit of Prefect can have, found 'why?'"),
        ("flavors: {lap: 1}", "flavors.lap: asked for a size such as 2c4g or the name of a flavor"),
    ],
)
def test_a_mistake_in_the_file_is_told_before_anything_is_registered(
    text: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    write_quotas(tmp_path, text, monkeypatch)

    with pytest.raises(JobError):
        quotas_of_machine()
    assert main([]) == 1

    said = capsys.readouterr()
    assert said.out == ""
    assert str(tmp_path / "quotas.yaml") in said.err
    assert found in said.err


def test_a_quota_may_name_a_flavor_that_only_the_server_has(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".trainjob" / "registry"
    folder.mkdir(parents=True)
    (folder / "quotas.yaml").write_text("flavors: {lab: 1}")
    monkeypatch.setenv("TRAINJOB_REGISTRY", "prefect")
    FlavorBlock.register_type_and_schema()
    block_id = cast(UUID, FlavorBlock(size="2c4g", called="lab").save("lab"))

    found = quotas_of_machine()

    client.delete_block_document(block_id)
    assert found == {Quota("limit", "trainjob flavor lab"): 1}
