"""Runs take places in the quotas of their flavor and tags, and wait while there are none."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.concurrency.sync import concurrency

from flows.quota_lease import QuotaLease
from flows.quotas import holding_quotas, quota_names
from flows.training_job import training_job
from tests.jobs import make_job
from tests.waiting import PATIENCE_S, wait_until
from trainjob.events import Event, StageStarted, listening
from trainjob.job import TrainingJob

ROOT = Path(__file__).parents[2]
WAITS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from prefect import flow
from flows.quotas import holding_quotas
from trainjob.job import TrainingJob
algorithm = {{"code": {{"url": "c"}}, "boot_file": "t.py"}}
job = TrainingJob.parse({{"name": "x", "tags": ["vision"], "algorithm": algorithm}})
@flow
def take():
    with holding_quotas(job):
        pass
try:
    take()
except KeyboardInterrupt:
    sys.exit(7)
"""
TEAM, FLAVOR = "trainjob tag vision", "trainjob flavor 1c1g"


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """Give a client of a server that has a quota of one run for a team and for a flavor."""
    with get_client(sync_client=True) as client:
        for name in (TEAM, FLAVOR):
            client.upsert_global_concurrency_limit_by_name(name, 1)
        yield client
        for name in (TEAM, FLAVOR):
            client.delete_global_concurrency_limit_by_name(name)


def taken(client: SyncPrefectClient) -> list[int]:
    found = map(client.read_global_concurrency_limit_by_name, (TEAM, FLAVOR))
    return [limit.active_slots for limit in found]


def test_a_run_has_its_places_from_its_first_stage_to_its_end(
    client: SyncPrefectClient, tmp_path: Path
) -> None:
    job = make_job(tmp_path, tags=["vision", "no quota"], resources={"flavor": "1C1G"})
    seen: list[list[int]] = []

    def look(event: Event) -> None:
        if isinstance(event, StageStarted):
            seen.append(taken(client))

    with listening(look):
        report = training_job(TrainingJob.parse(job))

    assert report.state == "Completed"
    assert seen == [[1, 1]] * 5
    assert taken(client) == [0, 0]


def test_a_run_waits_for_a_place_and_says_for_which(
    client: SyncPrefectClient, tmp_path: Path
) -> None:
    job = TrainingJob.parse(make_job(tmp_path, tags=["vision"]))
    entered = threading.Event()
    said: list[str] = []

    @flow
    def take() -> None:
        with holding_quotas(job):
            entered.set()

    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("prefect.flow_runs")
    logger.addHandler(handler)
    waiting = threading.Thread(target=take)
    try:
        with concurrency(TEAM, strict=True):
            waiting.start()
            wait_until(lambda: any("waiting for a place" in line for line in said))
            went_on = entered.is_set()
        waiting.join()
    finally:
        logger.removeHandler(handler)

    assert f"waiting for a place in the quota '{TEAM}' (at most 1 run)" in said
    assert not went_on
    assert entered.is_set()
    assert taken(client) == [0, 0]


def test_a_run_that_waits_for_a_place_ends_when_it_is_interrupted(
    client: SyncPrefectClient, prefect_server: str
) -> None:
    with concurrency(TEAM, strict=True):
        waiting = subprocess.Popen(
            [sys.executable, "-c", WAITS],
            env=os.environ | {"PREFECT_API_URL": prefect_server},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert waiting.stderr is not None
            assert any("waiting for a place" in line for line in waiting.stderr)
            waiting.send_signal(signal.SIGINT)
            waiting.communicate(timeout=PATIENCE_S)
        finally:
            waiting.kill()

    assert waiting.returncode == 7
    assert taken(client) == [0, 0]


def test_a_run_takes_its_place_again_that_the_server_took_back(
    client: SyncPrefectClient, caplog: pytest.LogCaptureFixture
) -> None:
    """As it does with a lease that expired while it was away, before the run can extend it."""

    @flow
    def train() -> list[list[int]]:
        lease = QuotaLease.take([TEAM, FLAVOR])
        assert lease is not None
        with lease.kept(renew_s=0.1, poll_s=0.1):
            lost = lease.lease_id
            assert lost is not None
            client.release_concurrency_slots_with_lease(lost)
            wait_until(lambda: lease.lease_id not in (None, lost))
            return [taken(client)]

    assert train() == [[1, 1]]

    assert taken(client) == [0, 0]
    assert f"the server knows no more of the place in the quota '{TEAM}', '{FLAVOR}'" in caplog.text


def test_a_place_that_another_run_got_meanwhile_is_waited_for(client: SyncPrefectClient) -> None:
    @flow
    def train() -> None:
        lease = QuotaLease.take([TEAM])
        assert lease is not None
        with lease.kept(renew_s=0.1, poll_s=0.1):
            lost = lease.lease_id
            assert lost is not None
            # The other run is there before the place is lost, or both would be after it.
            client.upsert_global_concurrency_limit_by_name(TEAM, 2)
            with concurrency(TEAM, strict=True):
                client.upsert_global_concurrency_limit_by_name(TEAM, 1)
                client.release_concurrency_slots_with_lease(lost)
                wait_until(lambda: lease.lease_id is None)
            wait_until(lambda: lease.lease_id is not None)

    train()

    assert taken(client) == [0, 0]


def test_a_job_without_flavor_and_tags_asks_for_no_quota(tmp_path: Path) -> None:
    assert quota_names(TrainingJob.parse(make_job(tmp_path))) == []


def test_a_quota_of_a_size_holds_for_flavors_with_a_name_of_their_own_too(tmp_path: Path) -> None:
    named = {"name": "lab", "cores": 1, "memory_gib": 1}
    jobs = [make_job(tmp_path, resources={"flavor": flavor}) for flavor in ("1C1GiB", named)]

    assert [quota_names(TrainingJob.parse(job)) for job in jobs] == [
        [FLAVOR],
        ["trainjob flavor lab", FLAVOR],
    ]


@pytest.mark.parametrize("tag", ["vision#2", "vision?x=1", "vision/2", "vision%23"])
def test_a_tag_that_begins_as_a_quota_is_called_takes_no_place_of_it(
    client: SyncPrefectClient, tmp_path: Path, tag: str
) -> None:
    with holding_quotas(TrainingJob.parse(make_job(tmp_path, tags=[tag]))):
        assert taken(client) == [0, 0]
