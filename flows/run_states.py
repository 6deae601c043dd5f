"""What a run does, in the words that people use: by the stages that the server knows of it.

For `flows.runs` and what shows runs. The last stage counts of the pass that goes on: one that was
retried or started again has those of its earlier passes too.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun
from prefect.client.schemas.sorting import TaskRunSort

from flows.delivery import count_of_pass

INITIALIZING, STAGING, RUNNING, UPLOADING = "Initializing", "Staging", "Running", "Uploading"
"""What a run does that is going on."""

PHASES = {
    "stage_inputs": STAGING,
    "fetch_code": STAGING,
    "install_requirements": STAGING,
    "inject_hyperparameters": STAGING,
    "train": RUNNING,
    "upload_outputs": UPLOADING,
    "report": UPLOADING,
}
"""What a run does while a stage is the latest one."""

GOING_ON = (StateType.PENDING, StateType.RUNNING)
"""The states of a run of which the stages say what it does."""

_PAGE = 200  # more, the server does not give at once
_NEVER = datetime.min.replace(tzinfo=UTC)


def state_words(client: SyncPrefectClient, runs: Sequence[FlowRun]) -> dict[UUID, str]:
    """Return the state of each run by id: what it does while it goes on, then how it ended."""
    counts = {run.id: _count_of_pass(client, run) for run in runs if _is_running(run)}
    latest = {
        task.flow_run_id: task.name
        for task in _task_runs(client, list(counts))
        if task.flow_run_id and task.flow_run_run_count >= counts[task.flow_run_id]
    }
    words = {}
    for run in runs:
        words[run.id] = run.state.name or run.state.type.value if run.state else "Scheduled"
        if run.state and run.state.type in GOING_ON:
            words[run.id] = PHASES.get(latest.get(run.id, ""), INITIALIZING)
    return words


def stages_of(client: SyncPrefectClient, run: FlowRun) -> list[TaskRun]:
    """Return the latest try of each stage of a run, in the order in which they began."""
    latest = {task.name: task for task in _task_runs(client, [run.id]) if task.name in PHASES}
    latest.pop("report", None)  # says what the others did
    return sorted(latest.values(), key=_begun)


def _task_runs(client: SyncPrefectClient, run_ids: Sequence[UUID]) -> list[TaskRun]:
    """Return the task runs of these runs, those that began last at the end."""
    found: list[TaskRun] = []
    while run_ids:
        page = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=list(run_ids))),
            sort=TaskRunSort.EXPECTED_START_TIME_DESC,
            limit=_PAGE,
            offset=len(found),
        )
        found += page
        if len(page) < _PAGE:
            break
    return sorted(found, key=_begun)


def _is_running(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_running()


def _count_of_pass(client: SyncPrefectClient, run: FlowRun) -> int:
    """Return the least count that stages of the pass have; of the first one, all count."""
    return count_of_pass(client.read_flow_run_states(run.id)) if run.run_count > 1 else 0


def _begun(task: TaskRun) -> datetime:
    return task.start_time or task.expected_start_time or _NEVER
