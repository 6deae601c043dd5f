"""What a Prefect server knows of one run, gathered as JSON values for people and programs."""

import json
import math
from datetime import UTC, datetime
from typing import Any, cast

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import Artifact, FlowRun
from pydantic import TypeAdapter, ValidationError

from flows.run_states import stages_of, state_words
from flows.runs import (
    RERUN_OF_LABEL,
    artifacts_of,
    job_data,
    job_name,
    number_of,
    result_of,
)
from flows.submitting import deployment_of
from flows.tally import RESTARTS_LABEL
from tasks.report import RESULT_TYPE
from trainjob.errors import TrainjobError
from trainjob.job import url_of_run
from trainjob.spec import Name

_NAME: TypeAdapter[str] = TypeAdapter(Name)


def run_facts(run: FlowRun, word: str) -> dict[str, Any]:
    """Return what is known of a run without asking for more.

    Args:
        run: As the server has it.
        word: Its state as people know it.
    """
    ended = run.end_time
    return {
        "id": str(run.id),
        "name": run.name,
        "job": job_name(run),
        "state": word,
        "message": run.state.message if run.state else None,
        "pool": run.work_pool_name,
        "submitted": _iso(run.created),
        "started": _iso(run.start_time),
        "ended": _iso(ended),
        "seconds": _seconds(run.start_time, ended),
    }


def all_facts(client: SyncPrefectClient, run: FlowRun) -> dict[str, Any]:
    """Return all that is known of a run, as JSON values."""
    artifacts = artifacts_of(client, run)
    result: dict[str, Any] = _data_of(artifacts.get(RESULT_TYPE)) or {}
    has_ended = run.state is not None and run.state.is_final()
    deployment = deployment_of(client, run)
    return {
        **run_facts(run, state_words(client, [run])[run.id]),
        "number": number_of(client, run),
        "description": job_data(run).get("description"),
        "deployment": deployment.name if deployment else None,
        "tags": run.tags,
        "progress": None if has_ended else _progress(artifacts.get("progress")),
        "metrics": _metrics(result, artifacts.get("table")),
        "stages": _stages(client, run, result),
        "outputs": result.get("outputs", []),
        "saved": result.get("saved", []),
        "notes": result.get("notes", []),
        "spent": result.get("spent"),
        "restarts": run.labels.get(RESTARTS_LABEL, 0),
        "rerun_of": run.labels.get(RERUN_OF_LABEL),
        "error": result.get("error"),
        "failure": result.get("failure"),
        "job_file": job_data(run),
    }


def places_of(client: SyncPrefectClient, run: FlowRun) -> tuple[dict[str, str], str | None]:
    """Return where the outputs of a run are, by channel, and the name of the store for them.

    Raises:
        TrainjobError: If its job has no outputs, or nobody knows where they are.
    """
    result = result_of(client, run) or {}
    store = result.get("store") or job_data(run).get("store")
    places = result.get("output_urls") or _places_in_job(run)
    asked = f"asked for the outputs of the run {run.name!r}, found"
    if not places:
        raise TrainjobError(f"{asked} that its job {job_name(run)!r} has none")
    for name, url in places.items():
        if not _is_name(name):
            raise TrainjobError(
                f"{asked} an output of the name {name!r}, which no output can have; nothing was "
                "downloaded"
            )
        if "://" not in url and not url.startswith("/"):
            raise TrainjobError(
                f"{asked} no report of it, and in its job {url!r} for {name}, which is relative to "
                "the folder in which its worker ran it; it is there on the machine of the worker"
            )
    return places, store


def _is_name(text: str) -> bool:
    try:
        _NAME.validate_python(text)
    except ValidationError:
        return False
    return True


def _places_in_job(run: FlowRun) -> dict[str, str]:
    """Return the places of the outputs as somebody wrote them, of a run that left no report."""
    channels = job_data(run).get("outputs")
    return {
        str(channel["name"]): url_of_run(str(channel["url"]), str(run.id))
        for channel in (channels if isinstance(channels, list) else ())
        if isinstance(channel, dict) and {"name", "url"} <= channel.keys()
    }


def _stages(
    client: SyncPrefectClient, run: FlowRun, result: dict[str, Any]
) -> list[dict[str, Any]]:
    summaries = {stage["name"]: stage["summary"] for stage in result.get("stages", [])}
    return [
        {
            "name": task.name,
            "state": task.state.name if task.state else "Scheduled",
            "seconds": round(task.estimated_run_time.total_seconds(), 1),
            "summary": summaries.get(task.name),
        }
        for task in stages_of(client, run)
    ]


def _metrics(result: dict[str, Any], live: Artifact | None) -> list[dict[str, Any]]:
    if result:
        return cast(list[dict[str, Any]], result["metrics"])
    rows = json.loads(live.data) if live and isinstance(live.data, str) else []
    return [
        {"name": row["metric"], "last": _finite(row["last"]), "last_step": int(row["step"])}
        for row in rows
    ]


def _finite(text: str) -> float | None:
    """Return a number; None for what JSON does not have, as in the report's values."""
    number = float(text)
    return number if math.isfinite(number) else None


def _progress(artifact: Artifact | None) -> dict[str, Any] | None:
    if artifact is None:
        return None
    return {"percent": artifact.data, "text": artifact.description or ""}


def _data_of(artifact: Artifact | None) -> Any:
    return artifact.data if artifact else None


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    return None if start is None else round(((end or datetime.now(UTC)) - start).total_seconds(), 1)


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat(timespec="seconds")
