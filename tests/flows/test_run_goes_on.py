"""A run that is started again goes on, on another machine too, and a restart waits for no server.

Two machines are two folders for workspaces and results of stages that share one S3 bucket.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prefect import State
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_LOCAL_STORAGE_PATH,
    temporary_settings,
)
from prefect.states import AwaitingRetry, Crashed, Scheduled

from flows.delivery import AWAITING_RESTART, RESTART_PENDING
from flows.tally import ATTEMPTS_LABEL, RESTARTS_LABEL, TRAINED_LABEL
from flows.training_job import training_job
from tests.jobs import make_job
from tests.s3_faults import fault_proxy
from tests.waiting import wait_until
from trainjob.report import RunReport
from trainjob.storage.receipt import verify_receipt

# Four epochs; the machine "a" fails after two.
SCRIPT = """\
import os, pathlib, sys
checkpoints = pathlib.Path(os.environ["TRAINJOB_CHECKPOINT_DIR"])
is_first_machine = "/a/" in str(checkpoints)
state = checkpoints / "last.txt"
epoch, weights = map(int, state.read_text().split()) if state.exists() else (0, 1)
while epoch < 4:
    print("epoch", epoch, flush=True)
    weights = 3 * weights + epoch
    epoch += 1
    (pathlib.Path(os.environ["TRAIN_URL"]) / f"epoch-{epoch}").write_text(str(weights))
    state.write_text(f"{epoch} {weights}")
    if is_first_machine and epoch == 2:
        sys.exit(3)
"""
WEIGHTS = 3 * (3 * (3 * (3 * 1 + 0) + 1) + 2) + 3


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def start_on(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, FlowRun], State[Any]]:
    def start(machine: str, run: FlowRun) -> State[Any]:
        """Start a process for the run on a machine, and return how it ends there."""
        monkeypatch.setenv("TRAINJOB_WORKDIR", str(tmp_path / machine / "runs"))
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(run.id))  # as a worker does
        with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / machine / "results"}):
            flow_run = client.read_flow_run(run.id)
            state = run_flow(training_job, flow_run=flow_run, return_type="state")
        assert isinstance(state, State)
        return state

    return start


@pytest.mark.parametrize(
    "asked",
    [
        (AwaitingRetry(),),
        (Crashed(), Crashed(name=RESTART_PENDING), Scheduled(name=AWAITING_RESTART)),
    ],
    ids=["retried by a person", "re-delivered"],
)
def test_a_run_goes_on_on_another_machine_with_all_that_it_had(
    client: SyncPrefectClient,
    start_on: Callable[[str, FlowRun], State[Any]],
    s3: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: tuple[State[Any], ...],
) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    bucket = s3.new_bucket()
    job = make_job(
        tmp_path,
        SCRIPT,
        outputs=[{"name": "train_url", "url": f"s3://{bucket}/out/"}],
        checkpoints={"url": f"s3://{bucket}/checkpoints/"},
        logs={"url": f"s3://{bucket}/logs/"},
        limits={"auto_restart": 2},
    )
    run = client.create_flow_run(training_job, parameters={"job": job}, state=Scheduled())

    first = start_on("a", run)
    for state in asked:
        client.set_flow_run_state(run.id, state.fresh_copy(), force=True)
    second = start_on("b", run)

    assert (first.name, second.name) == ("Failed", "Completed"), second.message
    results = [key for key in s3.keys(bucket, "out/") if "_trainjob" not in key]
    assert results == ["out/_SUCCESS", *(f"out/epoch-{epoch}" for epoch in (1, 2, 3, 4))]
    assert s3.get(bucket, "out/epoch-4") == b"%d" % WEIGHTS
    assert s3.get(bucket, "logs/attempt-0/rank-0.log") == b"epoch 0\nepoch 1\n"
    assert s3.get(bucket, "logs/attempt-1/rank-0.log") == b"epoch 2\nepoch 3\n"
    report = second.result()
    assert isinstance(report, RunReport)
    assert [attempt.number for attempt in report.attempts] == [0, 1]


def test_a_machine_that_cannot_go_on_replaces_nothing_that_another_one_has_saved(
    client: SyncPrefectClient, start_on: Callable[[str, FlowRun], State[Any]], tmp_path: Path
) -> None:
    script = SCRIPT.replace("if is_first_machine and epoch == 2", "if epoch in (2, 3)")
    places = {name: {"url": str(tmp_path / name)} for name in ("checkpoints", "logs")}
    job = make_job(tmp_path, script, **places)
    run = client.create_flow_run(training_job, parameters={"job": job}, state=Scheduled())
    start_on("a", run)
    client.set_flow_run_state(run.id, AwaitingRetry(), force=True)
    start_on("b", run)
    shutil.rmtree(tmp_path / "a" / "runs" / str(run.id) / "code")
    client.set_flow_run_state(run.id, AwaitingRetry(), force=True)

    state = start_on("a", run)

    assert "is not on this machine or was removed" in str(state.message)
    assert {file.name for file in (tmp_path / "out").glob("epoch-*")} == {
        *("epoch-1", "epoch-2", "epoch-3")
    }
    assert (tmp_path / "checkpoints" / "last.txt").read_text().startswith("3 ")


@pytest.mark.parametrize("machine", ["a", "b"])
def test_a_run_delivered_again_without_time_left_ends_with_all_that_it_had(
    client: SyncPrefectClient,
    start_on: Callable[[str, FlowRun], State[Any]],
    tmp_path: Path,
    machine: str,
) -> None:
    places = {name: {"url": str(tmp_path / name)} for name in ("checkpoints", "logs")}
    job = make_job(tmp_path, SCRIPT, limits={"auto_restart": 2, "auto_stop": "1h"}, **places)
    run = client.create_flow_run(training_job, parameters={"job": job}, state=Scheduled())
    start_on("a", run)
    wait_until(lambda: client.read_flow_run(run.id).labels.get(ATTEMPTS_LABEL) == 1)
    client.update_flow_run_labels(run.id, {TRAINED_LABEL: 3600})
    asked: list[State[Any]] = [Crashed(), Crashed(name=RESTART_PENDING)]
    for state in (*asked, Scheduled(name=AWAITING_RESTART)):
        client.set_flow_run_state(run.id, state, force=True)

    ended = start_on(machine, run)

    assert ended.is_failed()
    assert "the 1h of limits.auto_stop are used up" in str(ended.message)
    receipt = verify_receipt(str(tmp_path / "out"), None)
    assert (receipt.problems, receipt.is_result) == ((), False)
    assert {file.name for file in (tmp_path / "out").glob("epoch-*")} == {"epoch-1", "epoch-2"}
    assert (tmp_path / "checkpoints" / "last.txt").read_text().startswith("2 ")
    assert (tmp_path / "logs" / "attempt-0" / "rank-0.log").read_text() == "epoch 0\nepoch 1\n"


def test_the_ranks_start_again_while_the_server_does_not_count(
    client: SyncPrefectClient, prefect_server: str, tmp_path: Path
) -> None:
    script = (
        "import os, pathlib, signal, time\n"
        f"began = pathlib.Path({str(tmp_path / 'began')!r})\n"
        "with began.open('a') as file: file.write(f'{time.time()}\\n')\n"
        "if len(began.read_text().split()) == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "(pathlib.Path(os.environ['TRAIN_URL']) / 'done').touch()\n"
    )
    job = make_job(tmp_path, script, limits={"auto_restart": 1})
    run = client.create_flow_run(training_job, parameters={"job": job}, state=Scheduled())
    port = urlsplit(prefect_server).port
    assert port is not None

    def began() -> list[float]:
        file = tmp_path / "began"
        return [float(line) for line in file.read_text().split()] if file.exists() else []

    with (
        fault_proxy(port, lambda _, path: "503" if is_away(path, began) else None) as proxy,
        temporary_settings(
            {PREFECT_API_URL: f"{proxy.endpoint_url}/api", PREFECT_CLIENT_MAX_RETRIES: 9}
        ),
    ):
        state = run_flow(training_job, flow_run=run, return_type="state")

    assert isinstance(state, State)
    assert state.is_completed(), state.message
    first, second = began()
    assert second - first < 60  # who waits for the server waits until there is a second start
    wait_until(lambda: client.read_flow_run(run.id).labels.get(RESTARTS_LABEL) == 1)
    assert client.read_flow_run(run.id).labels[ATTEMPTS_LABEL] == 2


def is_away(path: str, began: Callable[[], list[float]]) -> bool:
    """The labels of a run cannot be changed until its ranks have started for the second time."""
    return path.endswith("/labels") and len(began()) < 2
