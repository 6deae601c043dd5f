"""The plan of a job for a person: every path, the command line, the environment (A31)."""

import json
import os
import shlex
from typing import Any

from trainjob.job import InputChannel, TrainingJob
from trainjob.launch.applied_limits import planned_limits
from trainjob.launch.command import launcher_argv
from trainjob.launch.environment import rank_environment
from trainjob.launch.launch import Launch, Mount
from trainjob.launch.mpi import Mpirun, find_mpirun
from trainjob.plan import launch_of, program_of
from trainjob.values import counted
from trainjob.workspace import Workspace

_RUN_ID = "RUN_ID"  # stands for the id that a run gets when it starts
_MOST_RANKS = 8  # that are shown one by one


def preview(job: TrainingJob) -> dict[str, Any]:
    """Return what a run of `job` would use here, as plain values.

    Paths hold the word RUN_ID where the id of the run will be.
    """
    workspace = Workspace.of_run(_RUN_ID)
    program = program_of(job, workspace)
    launch = launch_of(job, workspace, program, run_id=_RUN_ID, attempt=0)
    inherited = rank_environment(launch, os.environ)
    added = {k: v for k, v in inherited.items() if os.environ.get(k) != v}
    return {
        "job": job.name,
        "saved_versions": job.saved_versions,
        "code": {"url": job.algorithm.code.url, "folder": str(workspace.code)},
        "inputs": [_input_plan(channel, workspace) for channel in job.inputs],
        "outputs": [
            {"name": c.name, "url": c.url, "folder": str(workspace.output_dir(c.name))}
            for c in job.outputs
        ],
        "checkpoints": {
            "url": job.checkpoints.url if job.checkpoints else None,
            "folder": str(workspace.checkpoints),
        },
        "logs": {"url": job.logs.url, "folder": str(launch.log_dir)},
        "sandbox": job.sandbox,
        "paths": [_path_plan(m) for m in launch.mounts if m.target != str(m.source)],
        "hyperparameters": _hyperparameter_plan(job),
        "limits": job.limits.model_dump(mode="json", exclude_none=True),
        "limits_of_ranks": planned_limits(launch),
        "ranks": job.world_size,
        "layout": [_rank_plan(rank, launch) for rank in range(job.world_size)],
        "command": str(program),
        "launcher": shlex.join(_launcher_argv(launch)),
        "environment": dict(sorted(added.items())),
        "secrets": job.secrets,
        "inherited_environment": sorted(set(inherited) - set(added)),
    }


def _rank_plan(rank: int, launch: Launch) -> dict[str, Any]:
    """Return where a rank computes, as all ranks of a run are on one machine, and its log."""
    return {
        "rank": rank,
        "node": 0,
        "local_rank": rank,
        "device": launch.device if launch.device == "cpu" else f"{launch.device}:{rank}",
        "log": str(launch.rank_log(rank)),
    }


def _rank_lines(layout: list[dict[str, Any]]) -> list[str]:
    """Return a line for each rank, of many the first and the last."""
    lines = [
        f"    rank {row['rank']}: node {row['node']}, local rank {row['local_rank']}, "
        f"{row['device']} -> {row['log']}"
        for row in layout
    ]
    return lines if len(lines) <= _MOST_RANKS else [*lines[: _MOST_RANKS - 2], "    …", lines[-1]]


def _path_plan(mount: Mount) -> dict[str, Any]:
    """Return an absolute folder that the script is given in another place than where it lies."""
    return {
        "path": mount.target,
        "folder": str(mount.source),
        "is_read_only": mount.is_read_only,
    }


def _input_plan(channel: InputChannel, workspace: Workspace) -> dict[str, Any]:
    folder = None if channel.is_streamed else str(workspace.input_dir(channel.name))
    return {
        "name": channel.name,
        "url": channel.url,
        "folder": folder,
        "mode": channel.mode,
        "how": _input_steps(channel),
    }


def _hyperparameter_plan(job: TrainingJob) -> list[dict[str, Any]]:
    """Return what the script gets, and by whom, the defaults that the job removes included."""
    rules = {rule.name: rule for rule in job.algorithm.hyperparameters}
    given = job.given_hyperparameters
    plan: list[dict[str, Any]] = []
    for name in dict.fromkeys((*rules, *given)):
        if name not in given:
            origin = "removed by the job" if name in job.hyperparameters else "not given"
        elif name in rules and rules[name].restricted:
            origin = "fixed by the algorithm"
        else:
            origin = "of the job" if name in job.hyperparameters else "default of the algorithm"
        plan.append({"name": name, "value": given.get(name), "origin": origin})
    return plan


def _hyperparameter_lines(plan: list[dict[str, Any]]) -> list[str]:
    if all(row["origin"] == "of the job" for row in plan):
        return []  # the command line says it all
    lines = [
        f"{row['name']}: {row['origin']}"
        if row["value"] is None
        else f"{row['name']} = {json.dumps(row['value'], ensure_ascii=False)}: {row['origin']}"
        for row in plan
    ]
    return [f"  {'        ' if i else 'values  '}{line}" for i, line in enumerate(lines)]


def _input_steps(channel: InputChannel) -> list[str]:
    """Say in a few lines what a run does with an input."""
    if channel.is_streamed:
        given = ", and the credentials of the store as AWS_* in its environment"
        return [f"not copied: the script gets the url{given if channel.needs_credentials else ''}"]
    steps = ["to read only, shared with other runs"]
    if channel.mode == "copy":
        steps = ["a copy of its own, which the script may write to"]
    if channel.unpack == "never":
        steps.append("an archive stays as it is")
    else:
        large = ", however large it becomes" if channel.unpack == "always" else ""
        names = (
            ""
            if channel.archive_names == "utf-8"
            else f", its names read as {channel.archive_names}"
        )
        steps.append(f"one archive is unpacked{large}{names}")
    if channel.expect:
        steps.append(f"refused unless it is {channel.expect}")
    return steps


def _launcher_argv(launch: Launch) -> list[str]:
    mpirun = find_mpirun() if launch.launcher == "mpi" else None
    return launcher_argv(launch, mpirun if isinstance(mpirun, Mpirun) else None)


def preview_text(plan: dict[str, Any]) -> str:
    """Return the plan as lines for a terminal."""
    lines = [f"{plan['job']}: nothing wrong found. A run would use:", ""]
    lines += [f"  code    {plan['code']['url']}", f"          -> {plan['code']['folder']}"]
    if plan["saved_versions"]:
        lines.append(f"  uses    {', '.join(plan['saved_versions'])}")
    for channel in plan["inputs"]:
        lines += [
            f"  input   {channel['name']}: {channel['url']}",
            *(f"          -> {line}" for line in (channel["folder"], *channel["how"]) if line),
        ]
    for channel in plan["outputs"]:
        lines += [
            f"  output  {channel['name']}: {channel['folder']}",
            f"          -> {channel['url']}",
        ]
    if plan["sandbox"]:
        lines.append("  sandbox nothing else of the machine is there but programs and devices")
    for shown in plan["paths"]:
        read_only = ", to read only" if shown["is_read_only"] else ""
        lines += [f"  path    {shown['path']}{read_only}", f"          -> {shown['folder']}"]
    for name, label in (("checkpoints", "saves "), ("logs", "logs  ")):
        lines.append(f"  {label}  {plan[name]['folder']}")
        lines += [f"          -> {plan[name]['url']}"] if plan[name]["url"] else []
    lines += _hyperparameter_lines(plan["hyperparameters"])
    lines.append(f"  limits  {_limits_text(plan['limits'])}")
    if plan["limits_of_ranks"]:
        lines.append(f"  ranks   {plan['limits_of_ranks']}")
    lines.append("")
    lines += [f"  {counted(plan['ranks'], 'rank')} of this, in the code folder:"]
    lines += [f"    {plan['command']}", *_rank_lines(plan["layout"])]
    lines += ["  started by:", f"    {plan['launcher']}", ""]
    lines += ["  environment of the ranks:"]
    lines += [f"    {name}={shlex.quote(value)}" for name, value in plan["environment"].items()]
    lines += [f"    {name}: the saved secret {saved!r}" for name, saved in plan["secrets"].items()]
    names = ", ".join(plan["inherited_environment"])
    lines += [f"    and from here: {names}", ""]
    return "\n".join(lines)


def _limits_text(limits: dict[str, Any]) -> str:
    """Return the limits as a job file has them on one line."""
    shown = {name: value for name, value in limits.items() if name != "target"}
    if target := limits.get("target"):
        bound = next(name for name in ("at_least", "at_most") if name in target)
        shown["target"] = f"{target['metric']} {bound} {target[bound]}"
    return ", ".join(f"{name} {value}" for name, value in shown.items())
