"""Where the script of a job finds its channels: in the workspace, or where its profile says.

Pure functions of the job and its workspace, used by `trainjob.plan`, the preview and the check.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from trainjob.archive import ARCHIVE_SUFFIXES
from trainjob.job import TrainingJob
from trainjob.launch.launch import Mount
from trainjob.profiles import PROFILES, GivenAs, place_of, way_of
from trainjob.workspace import Workspace


def channel_places(job: TrainingJob, workspace: Workspace) -> dict[str, Path | str]:
    """Return the folder of every channel by its name, inputs first; of a streamed one its url."""
    targets = dict(_channel_targets(job))
    inputs: dict[str, Path | str] = {}
    for channel in job.inputs:
        folder = targets.get(channel.name) or workspace.input_dir(channel.name)
        inputs[channel.name] = channel.url if channel.is_streamed else folder
    outputs = {c.name: targets.get(c.name) or workspace.output_dir(c.name) for c in job.outputs}
    saved = {job.checkpoints.name: workspace.checkpoints} if job.checkpoints else {}
    return inputs | outputs | saved


def argument_places(job: TrainingJob, workspace: Workspace) -> dict[str, Path | str]:
    """Return those of `channel_places` that are given as arguments."""
    return _without(channel_places(job, workspace), job, "env")


def environment_places(job: TrainingJob, workspace: Workspace) -> dict[str, Path | str]:
    """Return those of `channel_places` that are given as environment variables."""
    return _without(channel_places(job, workspace), job, "argument")


def mounts_of(job: TrainingJob, workspace: Workspace) -> tuple[Mount, ...]:
    """Return what the ranks see at the profile's absolute folders, those above others first."""
    profile = PROFILES[job.profile]
    mounts = []
    if profile.code is not None:
        target = profile.code.format(code=_code_name(job.algorithm.code.url))
        mounts.append(Mount(target, workspace.code, is_read_only=job.sandbox))
    if profile.scratch is not None:
        mounts.append(Mount(profile.scratch, workspace.scratch))
    targets = dict(_channel_targets(job))
    for channel in job.inputs:
        if channel.name in targets and not channel.is_streamed:
            folder = workspace.input_dir(channel.name)
            mounts.append(Mount(targets[channel.name], folder, is_read_only=channel.mode == "link"))
    outputs = (channel.name for channel in job.outputs if channel.name in targets)
    return (*mounts, *(Mount(targets[name], workspace.output_dir(name)) for name in outputs))


def profile_environment(job: TrainingJob) -> dict[str, str]:
    """Return the variables that the product of the job sets for every rank."""
    resources = job.resources
    devices = 0 if resources.device == "cpu" else resources.processes_per_node
    values = {"nodes": resources.nodes, "devices": devices}
    return {n: text.format(**values) for n, text in PROFILES[job.profile].environment.items()}


def _channel_targets(job: TrainingJob) -> Iterator[tuple[str, str]]:
    """Yield the name and absolute folder of the channels that have one."""
    profile = PROFILES[job.profile]
    inputs, outputs = [c.name for c in job.inputs], [c.name for c in job.outputs]
    for places, names in ((profile.inputs, inputs), (profile.outputs, outputs)):
        for i, name in enumerate(names):
            place = place_of(places, name)
            if place is not None and place.path is not None:
                yield name, place.path.format(name=name, index=i)


def _without(
    places: dict[str, Path | str], job: TrainingJob, way: GivenAs
) -> dict[str, Path | str]:
    """Return the places but those of channels that are given in this way alone."""
    profile = PROFILES[job.profile]
    ways = {c.name: way_of(profile.inputs, c.name, c.given_as) for c in job.inputs}
    ways |= {c.name: way_of(profile.outputs, c.name, c.given_as) for c in job.outputs}
    return {name: place for name, place in places.items() if ways.get(name) != way}


def _code_name(url: str) -> str:
    """Return the name of the code's folder, such as digits for s3://bucket/code/digits.zip."""
    name = PurePosixPath(url.partition("://")[2] or url).name.removesuffix(".git")
    for suffix in ARCHIVE_SUFFIXES:
        name = name.removesuffix(suffix)
    return re.sub(r"[^A-Za-z0-9_-]", "_", name) or "code"
