"""A training as artifacts of a real Prefect server, with events told by hand."""

import base64
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from prefect import flow, task
from prefect.client.schemas.objects import Artifact
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

import tasks.live
from tasks.live import MAX_PLOT_BYTES, Plot, live_artifacts
from tests.artifacts import artifacts_of
from tests.interruptions import Stop, runs, stop_start_of_thread
from tests.s3_faults import Fault, FaultProxy, Rule, fault_proxy
from tests.waiting import PATIENCE_S, wait_until
from trainjob.events import (
    AttemptEnded,
    AttemptStarted,
    RankOutput,
    StepReported,
    emit,
)
from trainjob.job import Metric
from trainjob.metrics.patterns import MetricPatterns
from trainjob.metrics.recorder import MetricsRecorder
from trainjob.metrics.summary import MetricSummary

pytestmark = pytest.mark.usefixtures("prefect_server")

PNG = b"\x89PNG\r\n\x1a\n not drawn here"
Train = Callable[[], None]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the last words wait for a busy server: without them, artifacts are missing."""
    monkeypatch.setattr(tasks.live, "_PATIENCE_S", PATIENCE_S)
    monkeypatch.setattr(tasks.live, "_PATIENCE_WHEN_STOPPED_S", PATIENCE_S)
    monkeypatch.setattr(tasks.live, "_REQUEST_S", PATIENCE_S)


def step(number: int, total: int | None = 1000, **metrics: float) -> StepReported:
    return StepReported(0, number, total, None, metrics)


def run_task(train: Train, retries: int = 0) -> dict[str, Artifact]:
    """Run `train` as the task of a flow and return the artifacts of that run by key."""

    @task(name="train", retries=retries)
    def one_task() -> None:
        train()

    @flow
    def one_flow() -> str:
        one_task(return_state=True)
        return str(flow_run.id)

    return artifacts_of(one_flow())


def nothing() -> None:
    """Draw nothing."""


@contextmanager
def live(
    *, name: str = "Digits DDP", num_attempts: int = 1, plot: Plot = nothing, update_s: float = 60.0
) -> Iterator[None]:
    """Show what the block emits, with its metrics recorded as in a run."""
    recorder = MetricsRecorder(MetricPatterns([Metric(name="val_acc", regex="acc ([0-9.]+)")]))
    shown = live_artifacts(
        name,
        str(flow_run.id),
        num_attempts=num_attempts,
        summary=recorder.summary,
        plot=plot,
        update_s=update_s,
    )
    with shown, recorder.recording(0, None, (), None):
        yield


def run_live(train: Train, **options: Any) -> dict[str, Artifact]:
    def watched() -> None:
        with live(**options):
            train()

    return run_task(watched)


def no_fault(_method: str, _path: str) -> None:
    """Let every answer pass as it is."""


@pytest.fixture
def faulty_server(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Rule], FaultProxy]]:
    """Stand in front of the server, for all that is called after; count the writes."""
    with fault_proxy(int(urlsplit(prefect_server).port or 0), no_fault) as proxy:
        handler: Any = proxy.RequestHandlerClass
        monkeypatch.setattr(handler, "do_PATCH", handler.forward, raising=False)
        api_url = f"{proxy.endpoint_url}/api"

        def install(rule: Rule) -> FaultProxy:
            proxy.rule = rule
            return proxy

        with temporary_settings({PREFECT_API_URL: api_url}):
            yield install


def writes(proxy: FaultProxy) -> list[tuple[str, str]]:
    created = ("POST", "/api/artifacts/")
    return [request for request in proxy.requests if request[0] == "PATCH" or request == created]


def test_a_training_is_shown_as_progress_metrics_and_plot() -> None:
    def train() -> None:
        emit(AttemptStarted(0, None))
        emit(step(10, loss=0.5))
        emit(StepReported(0, 250, 1000, 3, {"loss": 0.25}))
        emit(RankOutput(0, ("acc 0.9",)))

    found = run_live(train, plot=lambda: PNG)

    progress, metrics, plot = (
        found[f"{kind}-digits-ddp"] for kind in ("progress", "metrics", "plot")
    )
    assert (progress.type, progress.data) == ("progress", 25.0)
    assert progress.description == "**ended** · step 250 of 1000 · epoch 3"
    assert metrics.type == "table"
    assert json.loads(str(metrics.data)) == [
        {
            "metric": "loss",
            "last": "0.25",
            "step": "250",
            "lowest": "0.25 (step 250)",
            "highest": "0.5 (step 10)",
        },
        {
            "metric": "val_acc",
            "last": "0.9",
            "step": "250",
            "lowest": "0.9 (step 250)",
            "highest": "0.9 (step 250)",
        },
    ]
    assert metrics.description == r"loss 0.25 · val\_acc 0.9 · step 250"
    picture = base64.b64encode(PNG).decode()
    assert (plot.type, plot.data) == (
        "markdown",
        f"![metrics over steps](data:image/png;base64,{picture})",
    )
    assert all(a.task_run_id is not None for a in found.values())


def test_a_training_that_says_nothing_has_no_artifacts() -> None:
    assert run_live(lambda: emit(RankOutput(0, ("a line",))), plot=lambda: PNG) == {}


def test_the_artifacts_are_up_to_date_while_the_training_goes_on() -> None:
    def train() -> None:
        run_id = str(flow_run.id)
        emit(step(10))
        wait_until(lambda: "progress-digits-ddp" in artifacts_of(run_id))
        emit(step(20))
        wait_until(lambda: artifacts_of(run_id)["progress-digits-ddp"].data == 2.0)

    run_live(train, update_s=0.05)


def test_an_attempt_that_failed_is_named_beside_the_next_one() -> None:
    error = RuntimeError("rank 1 was killed by `SIGKILL`\nlast 20 lines")

    def train() -> None:
        emit(step(30))
        emit(AttemptEnded(0, 1.0, None, error, will_restart=True, log_dir="/logs"))
        emit(AttemptStarted(1, resumed_from=20))
        emit(step(21))

    found = run_live(train, num_attempts=3)

    assert found["progress-digits-ddp"].description == (
        "**ended** · step 21 of 1000 · attempt 2 of 3 · went on from step 20\n\n"
        "Last failure: rank 1 was killed by \\`SIGKILL\\`"
    )


def test_a_retried_task_updates_the_artifacts_of_its_first_try() -> None:
    tries = iter([step(10), step(20)])

    def train() -> None:
        event = next(tries)
        with live(name="x"):
            emit(event)
            if event.step == 10:
                raise RuntimeError("try again")

    found = run_task(train, retries=1)

    assert found["progress-x"].data == 2.0
    assert list(found) == ["progress-x"]


@pytest.mark.parametrize(
    ("error", "ending"),
    [(RuntimeError("a rank failed"), "failed"), (KeyboardInterrupt(), "stopped")],
)
def test_the_end_of_a_training_is_said_and_its_error_passed_on(
    error: BaseException, ending: str
) -> None:
    def end_with_it() -> None:
        emit(step(10))
        raise error

    def train() -> None:
        with pytest.raises(type(error)) as raised, live(name="x"):
            end_with_it()
        assert raised.value is error

    found = run_task(train)

    assert found["progress-x"].description == f"**{ending}** · step 10 of 1000"


@pytest.mark.parametrize("is_late", [True, False])
def test_nothing_is_shown_when_its_start_was_interrupted(
    is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[BaseException] = []

    def train() -> None:
        with pytest.raises(Stop) as raised, live(name="x"):
            pytest.fail("the block was entered")
        stopped.append(raised.value)

    stop_start_of_thread(monkeypatch, "live-artifacts", is_late=is_late)
    found = run_task(train)

    assert stopped
    assert found == {}
    wait_until(lambda: not runs("live-artifacts"))


def test_writes_are_few_however_many_events_there_are(
    faulty_server: Callable[[Rule], FaultProxy],
) -> None:
    proxy = faulty_server(no_fault)
    update_s, train_s = 0.25, 0.0

    def train() -> None:
        nonlocal train_s
        begun, number = time.monotonic(), 0
        while train_s < 1:
            train_s = time.monotonic() - begun
            number += 1
            emit(step(number, total=None, loss=1 / number))

    run_live(train, update_s=update_s, plot=lambda: PNG)

    num_rounds = train_s / update_s + 1
    assert 3 <= len(writes(proxy)) <= 2 * num_rounds + 1  # progress and metrics, and one plot


def test_a_long_attempt_is_shown_more_seldom_and_the_next_one_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As if the attempt had gone on for so long that nobody waits for the next update.
    monkeypatch.setattr(tasks.live, "growing_pause_s", lambda *_: 1e6)
    error = RuntimeError("a rank was killed")

    def train() -> None:
        run_id = str(flow_run.id)
        emit(step(10))
        wait_until(lambda: "progress-x" in artifacts_of(run_id))
        emit(step(20))
        emit(AttemptEnded(0, 1.0, None, error, will_restart=True, log_dir="/logs"))
        wait_until(lambda: artifacts_of(run_id)["progress-x"].data == 2.0)

    found = run_live(train, name="x", update_s=0.05)

    assert "a rank was killed" in str(found["progress-x"].description)


def test_what_has_not_changed_is_not_written_again(
    faulty_server: Callable[[Rule], FaultProxy],
) -> None:
    proxy = faulty_server(no_fault)
    num_rounds = 0

    def summary() -> list[MetricSummary]:
        nonlocal num_rounds
        num_rounds += 1
        return [MetricSummary("loss", last=0.5, last_step=10)]

    def train() -> None:
        with live_artifacts(
            "x", str(flow_run.id), num_attempts=1, summary=summary, plot=nothing, update_s=0.02
        ):
            wait_until(lambda: num_rounds >= 5)

    found = run_task(train)

    assert list(found) == ["metrics-x"]
    assert len(writes(proxy)) == 1


def test_an_artifact_whose_creation_was_not_confirmed_is_found_again(
    faulty_server: Callable[[Rule], FaultProxy],
) -> None:
    faults: list[Fault] = ["cut"]

    def rule(method: str, path: str) -> Fault:
        is_creation = (method, path) == ("POST", "/api/artifacts/")
        return faults.pop() if faults and is_creation else None

    faulty_server(rule)

    found = run_live(lambda: emit(step(10)))

    assert not faults
    assert found["progress-digits-ddp"].data == 1.0


def test_a_server_that_is_gone_is_no_reason_to_fail(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tasks.live, "_PATIENCE_S", 0.0)
    is_trained = False

    def train() -> None:
        nonlocal is_trained
        gone = temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"})
        with gone, live(name="x", update_s=0.02):
            emit(step(10))
            wait_until(lambda: "Connection refused" in caplog.text)
        is_trained = True

    assert run_task(train) == {}
    assert is_trained


def test_a_server_that_is_away_for_a_while_costs_the_training_nothing(
    faulty_server: Callable[[Rule], FaultProxy], caplog: pytest.LogCaptureFixture
) -> None:
    is_away = True
    proxy = faulty_server(lambda _, path: "cut" if is_away and "/artifacts" in path else None)
    longest_s = 0.0

    def train() -> None:
        nonlocal is_away, longest_s
        for number in range(100):
            begun = time.monotonic()
            emit(step(number + 1, total=100))
            longest_s = max(longest_s, time.monotonic() - begun)
        wait_until(lambda: sum("/artifacts" in path for _, path in proxy.requests) >= 2)
        is_away = False

    found = run_live(train, update_s=0.05)

    assert found["progress-digits-ddp"].data == 100.0
    assert longest_s < 100  # who waits for the server waits for ever
    assert [r.levelname for r in caplog.records if "not up to date" in r.message] == ["WARNING"]


def test_a_server_that_never_answers_delays_the_end_by_no_more_than_its_patience(
    faulty_server: Callable[[Rule], FaultProxy],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks.live, "_PATIENCE_S", 0.3)
    proxy = faulty_server(lambda _, path: "stall" if "/artifacts" in path else None)
    took_s = 0.0

    def train() -> None:
        nonlocal took_s
        begun = time.monotonic()
        with live(name="x", update_s=0.02):
            emit(step(10))
            proxy.stalled.wait()
            begun = time.monotonic()
        took_s = time.monotonic() - begun
        proxy.rule = no_fault
        proxy.ended.set()

    run_task(train)

    assert took_s < 100  # the request goes on for longer
    assert any("may be missing" in record.message for record in caplog.records)


@pytest.mark.parametrize("size_bytes", [MAX_PLOT_BYTES + 1, None])
def test_a_plot_that_cannot_be_shown_is_told_once_and_the_rest_is_shown(
    size_bytes: int | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.live, "PLOT_S", 0.0)
    num_drawn = 0

    def plot() -> bytes:
        nonlocal num_drawn
        num_drawn += 1
        if size_bytes is None:
            raise ValueError("no data to draw")
        return bytes(size_bytes)

    def train() -> None:
        emit(step(1, loss=1.0))
        wait_until(lambda: num_drawn >= 1)
        emit(step(2, loss=0.5))

    with caplog.at_level(logging.WARNING, "prefect"):
        found = run_live(train, plot=plot, update_s=0.02)

    assert sorted(found) == ["metrics-digits-ddp", "progress-digits-ddp"]
    assert num_drawn >= 2  # once more if an update comes between the last step and the end
    assert len([record for record in caplog.records if "drawn" in record.message]) == int(
        size_bytes is None
    )
    assert len([record for record in caplog.records if "more than" in record.message]) == int(
        size_bytes is not None
    )
