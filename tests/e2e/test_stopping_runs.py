"""Runs that are stopped, by a person or a limit: what they leave, and that the next one goes on.

How a run ends that is cancelled by way of a server is told by `test_worker_faults`.
"""

import json
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.__main__ import main
from tests.e2e.watched_runs import (
    LAUNCHERS,
    Ended,
    local_steps,
    page_of,
    run,
    started,
    stored_steps,
    watched_job,
)
from tests.processes import marked_processes
from tests.waiting import PATIENCE_S, wait_until
from trainjob.storage.receipt import read_receipt, verify_receipt

MANY = {"steps": 1000, "step_s": 0.2}
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.mpi,
    pytest.mark.timeout(1500),
    pytest.mark.usefixtures("prefect_server"),
]


def stoppable(
    folder: Path, hyperparameters: dict[str, Any] = MANY, **changes: Any
) -> dict[str, Any]:
    """Return a job that trains for more than three minutes unless it is stopped."""
    outputs = [{"name": "train_url", "url": str(folder / "out" / "{run_id}")}]
    changes = {"name": "stoppable", "outputs": outputs, **changes}
    return watched_job(folder, hyperparameters, **changes)


def model_of(folder: Path, run_id: str) -> int:
    """Return the step of the model that a run has left."""
    return int((folder / "out" / run_id / "model.txt").read_text())


def auto_stopped(folder: Path, launcher: str) -> list[Ended]:
    """A run that is stopped, and the next run of the same job, which has only a little to do."""
    mistyped = {"metric": "acuracy", "at_least": 0.01}
    limits = {"auto_stop": "40s", "target": mistyped}  # ranks begin slowly on a busy machine
    first = run(stoppable(folder, launcher=launcher, limits=limits))
    rest = {"steps": stored_steps(folder / "checkpoints")[-1] + 3}
    return [first, run(stoppable(folder, rest, launcher=launcher))]


def target_reached_by_report(folder: Path, launcher: str) -> list[Ended]:
    target = {"metric": "accuracy", "at_least": 0.02}
    return [run(stoppable(folder, launcher=launcher, limits={"target": target}))]


def target_reached_by_regex(folder: Path, launcher: str) -> list[Ended]:
    metrics = [{"name": "loss", "regex": "loss = ([0-9.e+-]+)"}]
    target = {"metric": "loss", "at_most": 0.05}
    limits = {"target": target}
    return [run(stoppable(folder, launcher=launcher, metrics=metrics, limits=limits))]


STORIES = {
    f"{story.__name__}-{launcher}": (story, launcher)
    for story, launchers in (
        (auto_stopped, LAUNCHERS),
        (target_reached_by_report, ("torchrun",)),
        (target_reached_by_regex, ("mpi",)),
    )
    for launcher in launchers
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stopped")


@pytest.fixture(scope="module")
def stories(folder: Path, prefect_server: str) -> dict[str, "Future[list[Ended]]"]:
    """Tell all stories of limits to their ends, at the same time."""
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as pool:
        patch.setenv("TRAINJOB_WORKDIR", str(folder / "runs"))
        return {
            name: pool.submit(copy_context().run, story, folder / name, launcher)
            for name, (story, launcher) in STORIES.items()
        }


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_auto_stop_leaves_checkpoint_and_outputs_and_the_next_run_goes_on(
    stories: dict[str, "Future[list[Ended]]"], folder: Path, launcher: str
) -> None:
    first, second = stories[f"auto_stopped-{launcher}"].result()
    folder = folder / f"auto_stopped-{launcher}"
    stopped_at = model_of(folder, first.report.run_id)

    assert first.state.is_completed()
    assert first.state.name == "AutoStopped"
    assert first.processes_left == {}
    assert 0 < stopped_at < MANY["steps"]
    first_out = str(folder / "out" / first.report.run_id)
    assert verify_receipt(first_out, None).is_result
    assert read_receipt(first_out, None).state == "AutoStopped"
    assert "limits.auto_stop" in first.page
    assert "target metric 'acuracy' was never reported; reported were: accuracy" in first.page
    assert second.state.name == "Completed", second.state.message
    assert second.report.run_id != first.report.run_id
    assert second.report.attempts[0].resumed_from == stopped_at
    starts = folder / "out" / second.report.run_id / "starts.txt"
    assert starts.read_text().split() == [str(stopped_at)]
    assert stored_steps(folder / "checkpoints")[-1] == stopped_at + 3


@pytest.mark.parametrize(
    ("story", "step"),
    [("target_reached_by_report-torchrun", 20), ("target_reached_by_regex-mpi", 20)],
)
def test_a_target_that_is_reached_stops_the_run(
    stories: dict[str, "Future[list[Ended]]"], folder: Path, story: str, step: int
) -> None:
    [ended] = stories[story].result()
    out = str(folder / story / "out" / ended.report.run_id)

    assert ended.state.is_completed(), ended.state.message
    assert ended.state.name == "TargetReached"
    assert ended.processes_left == {}
    assert step <= model_of(folder / story, ended.report.run_id) < MANY["steps"]
    assert verify_receipt(out, None).is_result
    assert read_receipt(out, None).state == "TargetReached"
    assert "limits.target" in ended.page


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ctrl_c_saves_what_there_is(tmp_path: Path, prefect_server: str, launcher: str) -> None:
    env = {"PREFECT_API_URL": prefect_server, "TRAINJOB_WORKDIR": str(tmp_path / "runs")}
    with started(tmp_path, stoppable(tmp_path, launcher=launcher), env) as process:
        wait_until(lambda: local_steps(tmp_path / "runs"))
        process.send_signal(signal.SIGINT)
        said, told = process.communicate(timeout=PATIENCE_S)

    report = json.loads(said)
    run_id, stopped_at = report["run_id"], model_of(tmp_path, report["run_id"])
    out = str(tmp_path / "out" / run_id)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert marked_processes(run_id) == {}
    assert report["state"] == "Cancelled"
    assert stored_steps(tmp_path / "checkpoints")[-1] == stopped_at
    assert verify_receipt(out, None).problems == ()
    assert read_receipt(out, None).state == "Cancelled"
    page = page_of(run_id, "stoppable")
    assert "# stoppable: Cancelled" in page
    for saved in (out, str(tmp_path / "checkpoints")):
        assert any(saved in line and "MISSING" not in line for line in report["saved"])
        assert saved in page


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "too long": ({"limits": {"auto_stop": "73h"}}, "limits.auto_stop"),
    "no time to leave": ({"limits": {"grace": "0s"}}, "limits.grace"),
    "too often": ({"limits": {"auto_restart": 11}}, "limits.auto_restart"),
    "no value": ({"limits": {"target": {"metric": "loss"}}}, "limits.target"),
    "no regex": ({"metrics": [{"name": "loss", "regex": "loss=("}]}, "metrics[0].regex"),
    "no number": ({"metrics": [{"name": "loss", "regex": "loss=.*"}]}, "metrics[0].regex"),
    "checkpoints of another job": ({"name": "another"}, "checkpoints.url"),
}


def test_what_is_wrong_with_a_job_is_one_message_each(
    stories: dict[str, "Future[list[Ended]]"],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stories["auto_stopped-mpi"].result()
    checkpoints = {"url": str(folder / "auto_stopped-mpi" / "checkpoints")}
    calls = [*(("check", name) for name in BAD), ("run", list(BAD)[-1])]
    for command, name in calls:
        changes, field = BAD[name]
        job = stoppable(tmp_path / name.replace(" ", "-"), checkpoints=checkpoints, **changes)
        file = tmp_path / "job.yaml"
        file.write_text(yaml.safe_dump(job))

        code = main([command, str(file)])

        said = capsys.readouterr().err
        assert code == 2, (command, name, said)
        assert "1 problem\n" in said, (command, name, said)
        assert f"  {field}: asked for" in said
    assert not (tmp_path / "runs").exists()
