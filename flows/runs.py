"""Training jobs that a Prefect server knows: found by what people call them, and what is known.

Everything that reads runs, for `flows.run_answers`. A run is Prefect's flow run of the flow
``training-job``, of whatever pool, or of none if it runs in the terminal that started it.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterId,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.client.schemas.sorting import ArtifactSort, FlowRunSort

from flows.delivery import RESTART_PENDING, began_at
from flows.run_states import GOING_ON, INITIALIZING, PHASES, state_words
from tasks.report import RESULT_TYPE
from trainjob.errors import TrainjobError

FLOW = "training-job"
RERUN_OF_LABEL = "trainjob.rerun-of"
"""Label of a run with the id of the run whose job it was made from."""

_NAMES_OF_STATES = (
    "Scheduled",
    "Late",
    "AwaitingRestart",
    "AwaitingRetry",
    "Cancelling",
    "Completed",
    "AutoStopped",
    "TargetReached",
    "Failed",
    "Cancelled",
    "Crashed",
    "Interrupted",
    "RestartPending",
)
_ALSO_CALLED = {"pending": INITIALIZING, "submitting": INITIALIZING}
"""What the UI calls a state that we call otherwise, in small letters."""

_PAGE = 200  # more, the server does not give at once
_MAX_RUNS = 5000
_MAX_COUNTED = 1000  # 5 requests, which `show` waits for
_MAX_NAMED = 10
_SOON = timedelta(minutes=1)
_ID_PREFIX = re.compile(r"[0-9a-f]{4}[0-9a-f-]*")
_OF_OUR_FLOW = FlowFilter(name=FlowFilterName(any_=[FLOW]))


def find_run(client: SyncPrefectClient, text: str, *, to_stop: bool = False) -> FlowRun:
    """Return the run that is meant.

    Args:
        client: How to reach the server.
        text: Its id or the beginning of it, its name, or the name of a job: then its latest run.
        to_stop: Whether one that is not over is meant, if there is one; of a job with more than
            one such, none is taken.

    Raises:
        TrainjobError: If there is none, or more than one; the message names them.
    """
    run_id = _as_id(text)
    if run_id is not None:
        found = _read(client, FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
    else:
        found = _read(client, FlowRunFilter(name=FlowRunFilterName(any_=[text])))
    if found:
        return _only(text, (to_stop and _not_over(found)) or found)
    of_job: list[FlowRun] = []
    begins: list[FlowRun] = []
    seen: dict[str, None] = {}
    for run in _newest_first(client, _due()):
        if job_name(run) == text:
            if not to_stop:
                return run
            of_job.append(run)
        seen |= {job_name(run): None, run.name: None}
        if _ID_PREFIX.fullmatch(text.lower()) and str(run.id).startswith(text.lower()):
            begins.append(run)
    if of_job:
        return _only(text, _not_over(of_job) or of_job[:1])
    if begins:
        return _only(text, begins)
    raise TrainjobError(_not_found(text, list(seen)))


def is_over(run: FlowRun) -> bool:
    """Tell whether a run has ended, and is not about to be started again."""
    state = run.state
    return state is not None and state.is_final() and state.name != RESTART_PENDING


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which runs are wanted; None: whatever it is.

    Attributes:
        state: Only those in this state, in whatever case.
        name: Only those whose name, or that of their job, has this in it.
        tag: Only those with this tag.
    """

    state: str | None = None
    name: str | None = None
    tag: str | None = None


def list_runs(client: SyncPrefectClient, chosen: Chosen, limit: int) -> list[tuple[FlowRun, str]]:
    """Return the newest runs with their states as people know them.

    Args:
        client: How to reach the server.
        chosen: Which runs.
        limit: How many.

    Raises:
        TrainjobError: If there is no such state.
    """
    wanted = None if chosen.state is None else _known_state(chosen.state)
    # Of what is only scheduled for later, there may be a hundred runs a schedule.
    where = FlowRunFilter() if wanted == "Scheduled" else _due()
    if wanted is not None:
        where.state = _state_filter(wanted)
    if chosen.tag is not None:
        where.tags = FlowRunFilterTags(all_=[chosen.tag])
    found: list[tuple[FlowRun, str]] = []
    for page in _pages(client, where):
        named = [run for run in page if chosen.name is None or _is_called(run, chosen.name)]
        words = state_words(client, named)
        found += [(run, words[run.id]) for run in named if wanted in (None, words[run.id])]
        if len(found) >= limit:
            break
    return found[:limit]


def artifacts_of(client: SyncPrefectClient, run: FlowRun) -> dict[str, Artifact]:
    """Return the latest artifact by type: of the report's values, ``progress``, ``table``.

    A report of an earlier pass of the run, before it was retried or restarted, is none.
    """
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]),
            type=ArtifactFilterType(any_=[RESULT_TYPE, "progress", "table"]),
        ),
        sort=ArtifactSort.UPDATED_DESC,
    )
    latest = {str(artifact.type): artifact for artifact in reversed(found)}
    # Not when it was created: a later pass updates the one of the pass before it.
    reported = latest[RESULT_TYPE].updated if RESULT_TYPE in latest else None
    begun = began_at(client.read_flow_run_states(run.id)) if reported else None
    if reported and begun and reported < begun:
        del latest[RESULT_TYPE]
    return latest


def result_of(client: SyncPrefectClient, run: FlowRun) -> dict[str, Any] | None:
    """Return the report of a run as values; None if its latest pass has left none."""
    artifact = artifacts_of(client, run).get(RESULT_TYPE)
    return artifact.data if artifact and isinstance(artifact.data, dict) else None


def number_of(client: SyncPrefectClient, run: FlowRun) -> int | None:
    """Return which run of its job a run is, 1 for the first.

    Those count that were due before it and are still there. Runs have the name of their job in
    their own from their start on.

    Returns:
        None if its job has no name, or more than 1,000 may be older.
    """
    name = job_data(run).get("name")
    if not isinstance(name, str):
        return None
    where = FlowRunFilter(
        name=FlowRunFilterName(like_=f"{name}-"),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=run.expected_start_time),
    )
    num_seen, num_older = 0, 0
    for page in _pages(client, where):
        num_seen += len(page)
        if num_seen > _MAX_COUNTED:
            return None
        num_older += sum(job_name(other) == name and other.id != run.id for other in page)
    return num_older + 1


def job_data(run: FlowRun) -> dict[str, Any]:
    """Return the job of a run as its keys and values, as far as it is one."""
    job = run.parameters.get("job")
    return job if isinstance(job, dict) else {}


def job_name(run: FlowRun) -> str:
    """Return the name of the job of a run, or of the run if the job has none."""
    name = job_data(run).get("name")
    return name if isinstance(name, str) else run.name


def _not_over(runs: Sequence[FlowRun]) -> list[FlowRun]:
    return [run for run in runs if not is_over(run)]


def _as_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _only(text: str, found: Sequence[FlowRun]) -> FlowRun:
    if len(found) == 1:
        return found[0]
    named = [f"{run.id} ({run.name})" for run in found[:_MAX_NAMED]]
    if len(found) > _MAX_NAMED:
        named.append("others")
    raise TrainjobError(f"asked for the run {text!r}, found {', '.join(named)}; give one id")


def _not_found(text: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(text, known, n=1)
    do = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"asked for the run {text!r}, found no training job of this id, beginning of an id, name "
        f"or job name; {do}See `python -m flows list`"
    )


def _known_state(text: str) -> str:
    phases = dict.fromkeys(PHASES.values())
    known = {name.lower(): name for name in (INITIALIZING, *phases, *_NAMES_OF_STATES)}
    if found := (known | _ALSO_CALLED).get(text.lower()):
        return found
    near = difflib.get_close_matches(text.lower(), list(known), n=1)
    do = f"did you mean {known[near[0]]!r}?" if near else f"known: {', '.join(known.values())}"
    raise TrainjobError(f"asked for runs in the state {text!r}, found no such state; {do}")


def _state_filter(word: str) -> FlowRunFilterState:
    if word in _NAMES_OF_STATES:
        return FlowRunFilterState(name=FlowRunFilterStateName(any_=[word]))
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=list(GOING_ON)))


def _is_called(run: FlowRun, part: str) -> bool:
    return any(part.lower() in name.lower() for name in (run.name, job_name(run)))


def _due() -> FlowRunFilter:
    soon = datetime.now(UTC) + _SOON  # clocks differ
    return FlowRunFilter(expected_start_time=FlowRunFilterExpectedStartTime(before_=soon))


def _newest_first(client: SyncPrefectClient, where: FlowRunFilter) -> Iterator[FlowRun]:
    for page in _pages(client, where):
        yield from page


def _pages(client: SyncPrefectClient, where: FlowRunFilter) -> Iterator[list[FlowRun]]:
    for offset in range(0, _MAX_RUNS, _PAGE):
        page = _read(client, where, offset)
        yield page
        if len(page) < _PAGE:
            return


def _read(client: SyncPrefectClient, where: FlowRunFilter, offset: int = 0) -> list[FlowRun]:
    return client.read_flow_runs(
        flow_filter=_OF_OUR_FLOW,
        flow_run_filter=where,
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=_PAGE,
        offset=offset,
    )
