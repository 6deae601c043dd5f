"""The server of docs/operations.md: PostgreSQL, a login, and no setting that SQLite needs."""

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

from tests.e2e.machine import Machine, begin_run, in_front_of
from tests.jobs import make_job
from tests.operations_page import ENV_FILES
from tests.postgres import running_postgres
from tests.s3_faults import fault_proxy, times
from tests.waiting import wait_until
from trainjob.storage.curl.retry import TRIES

DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
OF_ITS_PLACE = {  # each machine of the tests has its own
    "PREFECT_SERVER_API_HOST",
    "PREFECT_SERVER_API_PORT",
    "PREFECT_SERVER_UI_API_URL",
}
NUM_TRIES = {
    "stage_inputs": 2,
    "fetch_code": 1,
    "inject_hyperparameters": 1,
    "train": 1,
    "upload_outputs": 1,
    "report": 1,
}


@pytest.mark.e2e
@pytest.mark.timeout(1500)
def test_a_platform_on_postgresql_runs_a_job_whose_store_is_busy_for_a_while(
    tmp_path: Path, s3: Any
) -> None:
    shown = ENV_FILES["server.env"]
    server_env = {key: value for key, value in shown.items() if key not in OF_ITS_PLACE}
    client_env = ENV_FILES["client.env"]
    bucket = s3.new_bucket()
    s3.put(bucket, "data/value.txt", b"21")
    inputs = [{"name": "data_url", "url": f"s3://{bucket}/data/"}]
    job = make_job(tmp_path / "job", inputs=inputs)
    # So often that staging gives up once, and Prefect tries the task again.
    is_busy = times(TRIES, "503", "GET", "/data/value.txt")

    with running_postgres() as url, fault_proxy(s3.port, is_busy) as store:
        env = client_env | s3.env | {"AWS_ENDPOINT_URL": store.endpoint_url}
        machine = Machine(tmp_path / "machine", env, server_env | {DATABASE: url})
        login = {PREFECT_API_AUTH_STRING: client_env["PREFECT_API_AUTH_STRING"]}
        try:
            with in_front_of(machine.api_url), temporary_settings(login):
                run = ended(begin_run("cpu", job))
                # The server hears of tasks by events, which may come after the end of their run.
                wait_until(lambda: num_tries(run) == NUM_TRIES, said=lambda: num_tries(run))
        finally:
            machine.end()

    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    assert (tmp_path / "job" / "out" / "result.json").read_text() == "42"


def ended(run: FlowRun) -> FlowRun:
    """Wait until a run has ended, and return it as it is then."""
    with get_client(sync_client=True) as client:

        def is_over() -> bool:
            state = client.read_flow_run(run.id).state
            return state is not None and state.is_final()

        wait_until(is_over)
        return client.read_flow_run(run.id)


def num_tries(run: FlowRun) -> dict[str, int]:
    """Return how often each stage of a run was tried, as far as the server has heard."""
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    with get_client(sync_client=True) as client:
        stages = client.read_task_runs(flow_run_filter=of_run)
    return {stage.name: stage.run_count for stage in stages}
