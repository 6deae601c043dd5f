"""Pools on a server: made, brought up to date, and left to the person who changed them."""

from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import WorkPool

from deployments import register, work_pools
from deployments.register import main
from deployments.work_pools import (
    KINDS,
    POOLS,
    Kind,
    PoolName,
    PoolSpec,
    base_job_template,
    check_image,
    ensure_pool,
)
from tests.pools import delete_pools
from trainjob.errors import TrainjobError

IMAGE = "registry.example.com/trainjob:1"
CPU = PoolSpec("cpu", like="cpu")


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """Give a client of a server without pools of ours."""
    with get_client(sync_client=True) as client:
        delete_pools(client)  # of other tests on the same server
        yield client
        delete_pools(client)


def changed_by_hand(client: SyncPrefectClient) -> WorkPool:
    """Change a default of the pool cpu, as a person does in the UI."""
    template = client.read_work_pool("cpu").base_job_template
    template["variables"]["properties"]["stream_output"]["default"] = False
    client.update_work_pool("cpu", WorkPoolUpdate(base_job_template=template))
    return client.read_work_pool("cpu")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", POOLS)
def test_a_pool_is_made_once_and_then_left(
    client: SyncPrefectClient, kind: Kind, name: PoolName
) -> None:
    first = ensure_pool(client, PoolSpec(name, name, kind, IMAGE))
    made = client.read_work_pool(name)

    second = ensure_pool(client, PoolSpec(name, name))

    assert (first.verb, second.verb) == ("created", "left")
    assert made.type == kind
    assert made.description
    assert client.read_work_pool(name) == made


def test_a_template_that_a_person_changed_is_left_unless_that_is_forced(
    client: SyncPrefectClient,
) -> None:
    ensure_pool(client, CPU)
    ours = client.read_work_pool("cpu").base_job_template
    theirs = changed_by_hand(client).base_job_template

    left = ensure_pool(client, CPU)
    kept = client.read_work_pool("cpu").base_job_template
    forced = ensure_pool(client, CPU, force=True)

    assert left.verb == "left"
    assert "changed by hand" in left.why
    assert "--force" in left.why
    assert kept == theirs
    assert forced.verb == "changed"
    assert client.read_work_pool("cpu").base_job_template == ours


def test_a_template_of_an_older_release_is_brought_up_to_date(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = copytree(work_pools._FOLDER, tmp_path / "pools")
    text = (older / "process.yaml").read_text().replace("default: true", "default: false", 1)
    (older / "process.yaml").write_text(text)
    with monkeypatch.context() as release:
        release.setattr(work_pools, "_FOLDER", older)
        ensure_pool(client, CPU)

    change = ensure_pool(client, CPU)

    assert change.verb == "changed"
    fields = client.read_work_pool("cpu").base_job_template["variables"]["properties"]
    assert fields["stream_output"]["default"] is True


def test_a_pool_that_a_worker_made_before_us_gets_our_template(client: SyncPrefectClient) -> None:
    client.create_work_pool(WorkPoolCreate(name="cpu", type="process"))

    change = ensure_pool(client, CPU)

    assert change.verb == "changed"
    assert ensure_pool(client, CPU).verb == "left"


def test_a_pool_that_a_person_made_in_the_ui_gets_our_template(client: SyncPrefectClient) -> None:
    offered = client.read_worker_metadata()["prefect"]["process"]["default_base_job_configuration"]
    client.create_work_pool(WorkPoolCreate(name="cpu", type="process", base_job_template=offered))

    change = ensure_pool(client, CPU)

    assert change.verb == "changed"
    assert ensure_pool(client, CPU).verb == "left"


def test_limit_and_pause_stay_as_a_person_has_set_them(client: SyncPrefectClient) -> None:
    client.create_work_pool(WorkPoolCreate(name="cpu", type="process"))
    client.update_work_pool("cpu", WorkPoolUpdate(is_paused=True, concurrency_limit=3))

    ensure_pool(client, CPU)

    pool = client.read_work_pool("cpu")
    assert (pool.is_paused, pool.concurrency_limit) == (True, 3)


def test_another_image_is_no_change_by_hand(client: SyncPrefectClient) -> None:
    ensure_pool(client, PoolSpec("gpu", "gpu", "docker", IMAGE))
    template = client.read_work_pool("gpu").base_job_template
    template["variables"]["properties"]["image"]["default"] = "mine:2"
    client.update_work_pool("gpu", WorkPoolUpdate(base_job_template=template))

    kept = ensure_pool(client, PoolSpec("gpu", "gpu"))
    replaced = ensure_pool(client, PoolSpec("gpu", "gpu", image=IMAGE))

    assert (kept.verb, replaced.verb) == ("left", "changed")
    fields = client.read_work_pool("gpu").base_job_template["variables"]["properties"]
    assert fields["image"]["default"] == IMAGE


def test_containers_without_an_image_are_refused(client: SyncPrefectClient) -> None:
    with pytest.raises(TrainjobError, match=r"found no image.*--image"):
        ensure_pool(client, PoolSpec("gpu", "gpu", "kubernetes"))

    assert "gpu" not in [pool.name for pool in client.read_work_pools()]


def test_a_pool_does_not_silently_stay_of_another_kind(client: SyncPrefectClient) -> None:
    ensure_pool(client, PoolSpec("gpu", "gpu"))

    with pytest.raises(TrainjobError, match=r"asked for .* docker, found one of type process"):
        ensure_pool(client, PoolSpec("gpu", "gpu", "docker", IMAGE))


def test_a_pool_of_a_kind_that_is_not_ours_is_left(client: SyncPrefectClient) -> None:
    client.create_work_pool(WorkPoolCreate(name="npu", type="ecs"))

    change = ensure_pool(client, PoolSpec("npu", "npu"))

    assert change.verb == "left"
    assert client.read_work_pool("npu").base_job_template == {}


def test_a_pool_of_ones_own_gets_the_template_of_ours(client: SyncPrefectClient) -> None:
    *ours, vision = register._pools([register._pool("vision=gpu:kubernetes")], IMAGE)

    first = ensure_pool(client, vision)
    made = client.read_work_pool("vision")
    second = ensure_pool(client, vision)
    client.delete_work_pool("vision")

    assert [spec.name for spec in ours] == [*POOLS]
    assert (first.verb, second.verb) == ("created", "left")
    assert made.type == "kubernetes"
    assert made.base_job_template == base_job_template("kubernetes", "gpu", IMAGE)
    assert made.description == "Training jobs on NVIDIA GPUs, in a Kubernetes cluster."


@pytest.mark.parametrize(
    "word",
    [
        "gpu",
        "gpu=slurm",
        "tpu=docker",
        "=docker",
        "gpu=docker=x",
        "a=b:docker",
        "gpu=cpu:docker",
        "a/b=gpu:docker",
        "prefect-x=gpu:docker",
    ],
)
def test_a_wrong_kind_is_told_with_those_that_there_are(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([word])

    assert "such as gpu=kubernetes, or vision=gpu:kubernetes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "template",
    [
        {"job_configuration": {}},
        {"variables": {"properties": None}},
        {"variables": {"properties": {"image": True}}},
        {"variables": {"properties": {"image": {"default": 3}}}},
    ],
)
def test_a_template_of_any_shape_is_looked_at(template: dict[str, Any]) -> None:
    """A server that checks less than Prefect's own may have them."""
    assert not work_pools._is_untouched(template)
    assert work_pools._image_of(template) is None


@pytest.mark.parametrize(("words", "names"), [(["cpu=process"], "cpu"), ([], "cpu, gpu, npu")])
def test_an_image_that_no_pool_would_start_in_is_refused_before_anything_is_made(
    client: SyncPrefectClient,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    names: str,
) -> None:
    assert main([*words, "--image", IMAGE]) == 1

    assert capsys.readouterr().err == (
        f"asked for the image {IMAGE!r}, found no pool of containers to start in it (of type "
        f"process: {names}); name one, such as gpu=docker, or leave out --image\n"
    )
    assert [pool.name for pool in client.read_work_pools() if pool.name in POOLS] == []


def test_an_image_without_a_name_is_for_a_pool_of_containers_that_there_is(
    client: SyncPrefectClient,
) -> None:
    ensure_pool(client, PoolSpec("gpu", "gpu", "docker", IMAGE))

    check_image(client, register._pools([], "mine:2"))
