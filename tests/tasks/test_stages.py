"""The stages as tasks: what is retried, what watchers hear, and running one of them again."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from tasks.fetch_code import fetch_code
from tasks.inject_hyperparameters import inject_hyperparameters
from tasks.stage import Done, stage
from tasks.stage_inputs import stage_inputs
from tasks.train import train
from tasks.upload_outputs import upload_outputs
from tests.jobs import make_job
from trainjob.attempts import Earlier
from trainjob.errors import (
    JobError,
    SourceError,
    StoreDenied,
    StoreUnavailable,
    TrainingFailed,
    TrainjobError,
)
from trainjob.events import Event, RankOutput, StageFailed, StageFinished, StageStarted, listening
from trainjob.job import TrainingJob
from trainjob.storage.receipt import verify_receipt

pytestmark = pytest.mark.usefixtures("prefect_server")

RUN_ID = "00000000-0000-0000-0000-000000000001"


def run_in_flow(work: Callable[[], Any]) -> Any:
    @flow
    def one_flow() -> Any:
        return work()

    return one_flow()


def failing_stage(errors: list[Exception], events: list[Event]) -> Callable[[], Any]:
    """A stage that raises these errors, one a try, and then returns; it does not wait between."""

    def fragile() -> str:
        if errors:
            raise errors.pop(0)
        return "value"

    task = stage(str)(fragile).with_options(retry_delay_seconds=0)

    def work() -> Any:
        with listening(events.append):
            return task()

    return work


def test_a_stage_is_tried_again_when_that_can_help() -> None:
    events: list[Event] = []
    errors: list[Exception] = [StoreUnavailable("down"), StoreUnavailable("still down")]

    done = run_in_flow(failing_stage(errors, events))

    assert done.value == "value"
    assert [type(event) for event in events] == [
        StageStarted,
        StageFailed,
        StageStarted,
        StageFailed,
        StageStarted,
        StageFinished,
    ]
    assert [event.attempt for event in events if isinstance(event, StageStarted)] == [1, 2, 3]
    assert all(event.will_retry for event in events if isinstance(event, StageFailed))


def test_a_stage_is_given_up_after_six_retries() -> None:
    events: list[Event] = []
    errors: list[Exception] = [StoreUnavailable(f"down {number}") for number in range(9)]

    with pytest.raises(StoreUnavailable, match="down 6"):
        run_in_flow(failing_stage(errors, events))

    failed = [event.will_retry for event in events if isinstance(event, StageFailed)]
    assert failed == [True] * 6 + [False]


@pytest.mark.parametrize(
    "error", [StoreDenied("no"), TrainingFailed("rank 0"), JobError("job", ()), ValueError("bug")]
)
def test_a_stage_is_not_tried_again_when_that_cannot_help(error: Exception) -> None:
    events: list[Event] = []

    with pytest.raises(type(error)):
        run_in_flow(failing_stage([error], events))

    assert [type(event) for event in events] == [StageStarted, StageFailed]


def test_every_stage_can_run_again_in_the_same_workspace(tmp_path: Path) -> None:
    job, run_id = TrainingJob.parse(make_job(tmp_path)), RUN_ID

    def twice(task: Any, *arguments: Any) -> Any:
        uncached = task.with_options(persist_result=False)
        first: Done[Any] = uncached(*arguments)
        second: Done[Any] = uncached(*arguments)
        assert first.summary == second.summary
        return second.value

    def all_stages() -> None:
        twice(stage_inputs, job, run_id)
        twice(fetch_code, job, run_id)
        program = twice(inject_hyperparameters, job, run_id)
        trained = twice(train, job, run_id, program, Earlier())
        assert trained.attempt == 1
        twice(upload_outputs, job, run_id, {"stages": {}}, "Completed")

    run_in_flow(all_stages)

    out = tmp_path / "out"
    assert verify_receipt(str(out), None).problems == ()
    assert sorted(path.name for path in out.iterdir()) == ["_SUCCESS", "_trainjob", "result.json"]


def test_a_run_takes_as_much_code_as_its_machine_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = TrainingJob.parse(make_job(tmp_path))
    (tmp_path / "code" / "another.py").touch()
    monkeypatch.setenv("TRAINJOB_CODE_MAX_FILES", "1")

    with pytest.raises(SourceError, match="code of at most 1 files and folders, found 2 in"):
        run_in_flow(lambda: fetch_code(job, RUN_ID))


def test_training_without_its_workspace_says_so(tmp_path: Path) -> None:
    job = TrainingJob.parse(make_job(tmp_path))

    def only_train() -> None:
        program = inject_hyperparameters(job, "gone").value
        train(job, "gone", program, Earlier())

    (tmp_path / "runs" / "gone").mkdir(parents=True)
    with pytest.raises(TrainjobError, match="is not on this machine or was removed"):
        run_in_flow(only_train)


def test_the_output_of_ranks_is_in_the_log_in_batches(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = "for i in range(150): print('line', i)\n"
    job = TrainingJob.parse(make_job(tmp_path, script))
    events: list[Event] = []

    def stages() -> None:
        fetch_code(job, RUN_ID)
        with listening(events.append):
            train(job, RUN_ID, inject_hyperparameters(job, RUN_ID).value, Earlier())

    with caplog.at_level(logging.INFO, "prefect"):
        run_in_flow(stages)

    records = [record.getMessage() for record in caplog.records if "[rank 0]" in record.message]
    assert "\n".join(records).splitlines() == [f"[rank 0] line {i}" for i in range(150)]
    assert len(records) < 10
    lines = [line for e in events if isinstance(e, RankOutput) for line in e.lines]
    assert lines == [f"line {i}" for i in range(150)]


def test_ranks_get_the_defaults_of_the_algorithm_by_every_way(tmp_path: Path) -> None:
    script = (
        "import json, os, pathlib, sys\n"
        "out = pathlib.Path(os.environ['TRAIN_URL'])\n"
        "params = json.loads(pathlib.Path(os.environ['TRAINJOB_PARAMS']).read_text())\n"
        "env = {k: v for k, v in os.environ.items() if k.startswith('TRAINJOB_HP_')}\n"
        "seen = [sys.argv[-4:], env, params['hyperparameters']]\n"
        "(out / 'seen.json').write_text(json.dumps(seen))\n"
    )
    plain = make_job(tmp_path, script, hyperparameters={"epochs": "5", "decay": None})
    plain["algorithm"] |= {
        "hyperparameters": [
            {"name": "epochs", "type": "integer", "default": 3, "required": True},
            {"name": "lr", "type": "float", "default": 1},
            {"name": "decay", "type": "float", "default": 0.5},
            {"name": "amp", "type": "boolean", "default": True},
        ],
        "arguments": {"booleans": "flag", "equals": True},
    }
    job = TrainingJob.parse(plain)

    def stages() -> None:
        stage_inputs(job, RUN_ID)
        fetch_code(job, RUN_ID)
        train(job, RUN_ID, inject_hyperparameters(job, RUN_ID).value, Earlier())
        upload_outputs(job, RUN_ID, {"stages": {}}, "Completed")

    run_in_flow(stages)

    [argv, env, params] = json.loads((tmp_path / "out" / "seen.json").read_text())
    assert argv[1:] == ["--epochs=5", "--lr=1.0", "--amp"]
    assert argv[0].startswith("--train_url=")
    assert env == {
        "TRAINJOB_HP_EPOCHS": "5",
        "TRAINJOB_HP_LR": "1.0",
        "TRAINJOB_HP_AMP": "true",
    }
    assert params == {"epochs": 5, "lr": 1.0, "amp": True}
    assert [type(value) for value in params.values()] == [int, float, bool]
