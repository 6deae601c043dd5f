"""Answers the commands of `flows.run_commands` by asking the Prefect server that is configured."""

import argparse
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from rich.console import Console

from blocks.object_store import load_settings
from flows.algorithm_deployment import deploy_algorithm, device_of
from flows.algorithm_forms import takes
from flows.cache_command import Answer
from flows.job_variables import merged, read_variables
from flows.kept_variables import kept_variables
from flows.registry_place import chosen_registry
from flows.run_facts import all_facts, places_of, run_facts
from flows.run_logs import LogTail, Say, follow, log_line
from flows.run_states import state_words
from flows.run_text import list_text, show_text
from flows.runs import Chosen, find_run, is_over, job_data, list_runs
from flows.schedule_answers import schedule
from flows.server_client import configured_server
from flows.submitting import (
    Submitted,
    deployment_for,
    deployment_name,
    deployment_of,
    deployment_on,
    pool_of,
    shared_checkpoints,
    submit,
    with_priority,
)
from flows.terminal import Terminal
from trainjob.download import Downloaded, download_output
from trainjob.errors import StoreError, TrainjobError
from trainjob.events import listening
from trainjob.flavor_catalogue import refresh_flavor
from trainjob.job import TrainingJob
from trainjob.job_changes import changed_job
from trainjob.registry.records import Reference, SavedAlgorithm
from trainjob.report import GOOD_ENDS
from trainjob.resources import Resources
from trainjob.values import counted, format_size


def _submit(arguments: argparse.Namespace, say: Say) -> Answer:
    with configured_server() as client:
        job = TrainingJob.load(arguments.job, chosen_registry())
        deployment = deployment_for(client, job, arguments.pool)
        deployment = with_priority(client, deployment, arguments.priority)
        variables = read_variables(arguments.job_variables, pool_of(client, deployment))
        made = submit(client, job, deployment, variables=variables)
        return _submitted(client, made, arguments, say)


def _list(arguments: argparse.Namespace, _say: Say) -> Answer:
    with configured_server() as client:
        chosen = Chosen(arguments.state, arguments.name, arguments.tag)
        found = list_runs(client, chosen, arguments.limit)
    rows = [run_facts(run, word) for run, word in found]
    return Answer(list_text(rows), {"runs": rows})


def _show(arguments: argparse.Namespace, _say: Say) -> Answer:
    with configured_server() as client:
        run = find_run(client, arguments.run)
        facts = all_facts(client, run)
    return Answer(show_text(facts, shutil.get_terminal_size((120, 24)).columns), facts)


def _logs(arguments: argparse.Namespace, say: Say) -> Answer:
    with configured_server() as client:
        run = find_run(client, arguments.run)
        if arguments.follow:
            run = follow(client, run.id, say)
            return Answer("", run_facts(run, state_words(client, [run])[run.id]))
        if not arguments.json:
            for log in LogTail(client, run.id).new():
                say(log_line(log))
            return Answer("", {})
        lines = [
            {"time": log.timestamp.isoformat(), "level": log.level, "message": log.message}
            for log in LogTail(client, run.id).new()
        ]
    return Answer("", {"id": str(run.id), "logs": lines})


def _stop(arguments: argparse.Namespace, _say: Say) -> Answer:
    with configured_server() as client:
        run = find_run(client, arguments.run, to_stop=True)
        if run.state is not None and is_over(run):
            raise TrainjobError(
                f"asked to stop the run {run.name!r}, found that it is {run.state.name}; see "
                f"`python -m flows show {run.id}`"
            )
        # One that waits to be started again has no process, and for the server it has ended.
        is_waiting = run.state is not None and run.state.is_final()
        wanted: State[Any] = State(type=StateType.CANCELLED if is_waiting else StateType.CANCELLING)
        answered = client.set_flow_run_state(run.id, wanted, force=is_waiting)
        run = client.read_flow_run(run.id)
        word = state_words(client, [run])[run.id]
    if answered.status == SetStateStatus.ABORT:
        reason = getattr(answered.details, "reason", None) or "no reason was given"
        raise TrainjobError(f"asked to stop the run {run.name!r}, found it {word}: {reason}")
    text = f"{run.name}: {word}"
    if word == "Cancelling":
        text += f"; it saves what it has. python -m flows show {run.id}"
    return Answer(text, run_facts(run, word))


def _rerun(arguments: argparse.Namespace, say: Say) -> Answer:
    with configured_server() as client:
        old = find_run(client, arguments.run)
        source, registry = f"the job of the run {old.name!r}", chosen_registry()
        given = refresh_flavor(job_data(old), registry.place)
        job, data = changed_job(given, arguments.changes, source, registry)
        before = _resources_of(old)
        goes_there = before is not None and _machine(before) == _machine(job.resources)
        deployment = None if arguments.pool else deployment_of(client, old)
        if deployment is None or not goes_there or not takes(deployment, job):
            deployment = deployment_for(client, job, arguments.pool)
        elif old.work_queue_name:  # its priority
            deployment = deployment.model_copy(update={"work_queue_name": old.work_queue_name})
        deployment = with_priority(client, deployment, arguments.priority)
        kept, left = kept_variables(client, old, before, deployment, job.resources)
        chosen = read_variables(arguments.job_variables, pool_of(client, deployment))
        made = submit(client, job, deployment, data, old.id, merged(kept, chosen))
        made = replace(made, warnings=(*made.warnings, *left, *shared_checkpoints(job)))
        return _submitted(client, made, arguments, say)


def _download(arguments: argparse.Namespace, say: Say) -> Answer:
    with configured_server() as client:
        run = find_run(client, arguments.run)
        places, store = places_of(client, run)
        settings = load_settings(store)
    folder = Path(arguments.folder or _folder_name(run))
    terminal = Terminal(Console(stderr=True))
    done: list[Downloaded] = []
    problems: dict[str, str] = {}
    with terminal.live(), listening(terminal):
        for name, url in places.items():
            target = folder.absolute() / name
            try:
                done.append(download_output(name, url, target, settings, run_id=str(run.id)))
            except StoreError as error:
                problems[name] = str(error)
    for output in done:
        say(_downloaded_line(output))
        for line in output.missing:
            say(f"  MISSING {line}")
    for name, problem in problems.items():
        say(f"{name}: NOT downloaded: {problem}")
    is_good = not problems and not any(output.missing for output in done)
    data = {"id": str(run.id), "outputs": [asdict(o) for o in done], "problems": problems}
    return Answer("", data, is_good)


def deploy(arguments: argparse.Namespace) -> Answer:
    """Make a deployment of a saved algorithm; see `flows.algorithm_deployment`."""
    with configured_server() as client:
        reference = Reference.parse(arguments.reference)
        algorithm = cast(SavedAlgorithm, chosen_registry().find("algorithm", reference))
        base = deployment_on(client, device_of(algorithm), arguments.pool)
        name = deployment_name(arguments.name or algorithm.name)
        deploy_algorithm(client, algorithm, base, name)
    text = f"the deployment training-job/{name} trains with {algorithm}, on the pool"
    data = {"deployment": f"training-job/{name}", "algorithm": str(algorithm)}
    return Answer(f"{text} {base.work_pool_name}", data)


def _submitted(
    client: SyncPrefectClient, made: Submitted, arguments: argparse.Namespace, say: Say
) -> Answer:
    run = made.run
    say(f"submitted {run.name} to the pool {run.work_pool_name}: {run.id}")
    if made.cost:
        say(f"cost: {made.cost}")
    for warning in made.warnings:
        say(f"warning: {warning}")
    data: dict[str, Any] = {"warnings": list(made.warnings), "cost": made.cost}
    if not arguments.watch:
        say(f"watch it by: python -m flows logs -f {run.id}")
        return Answer("", run_facts(run, "Scheduled") | data)
    try:
        ended = follow(client, run.id, say)
    except KeyboardInterrupt:
        say(f"the run goes on; stop it by: python -m flows stop {run.id}")
        raise
    facts = all_facts(client, ended)
    text = show_text(facts, shutil.get_terminal_size((120, 24)).columns)
    return Answer(text, facts | data, facts["state"] in GOOD_ENDS)


def _folder_name(run: FlowRun) -> str:
    if run.name in ("", ".", "..") or any(character in run.name for character in "/\\\0"):
        raise TrainjobError(
            f"asked to download the run {run.name!r}, found that no folder can have this name; "
            "give a FOLDER"
        )
    return run.name


def _resources_of(run: FlowRun) -> Resources | None:
    """Return what the job of a run asked for; None if that is not known any more."""
    try:
        return TrainingJob.parse(job_data(run), registry=chosen_registry()).resources
    except TrainjobError:
        return None


def _machine(resources: Resources) -> tuple[str, str | None]:
    """Return what decides where a job goes."""
    return resources.device, resources.flavor.pool if resources.flavor else None


def _downloaded_line(output: Downloaded) -> str:
    files = f"{counted(output.num_files, 'file')}, {format_size(output.size_bytes)}"
    of_what = "" if output.state in GOOD_ENDS else f", of a run that is no result: {output.state}"
    return f"{output.name}: {files}, as the receipt says{of_what}: {output.folder}"


ANSWERS: dict[str, Callable[[argparse.Namespace, Say], Answer]] = {
    "submit": _submit,
    "list": _list,
    "show": _show,
    "logs": _logs,
    "stop": _stop,
    "rerun": _rerun,
    "download": _download,
    "schedule": schedule,
}
"""By the name of the command. `Say` gets what is not to wait for the end of the answer."""
