"""The rules of input channels that look at several keys at once; called by `trainjob.job_rules`."""

from typing import TYPE_CHECKING

from trainjob.env_rules import variables_of
from trainjob.errors import Problem
from trainjob.parameters import channel_env_name
from trainjob.storage.script_access import ACCESS_ENV

if TYPE_CHECKING:  # the model calls these rules, so it cannot be imported here
    from trainjob.job import InputChannel, OutputChannel, TrainingJob


def input_rule_problems(job: "TrainingJob") -> list[Problem]:
    """Return what in the inputs of `job` cannot stand together."""
    problems = []
    for i, channel in enumerate(job.inputs):
        field = f"inputs[{i}]"
        rules = _streamed_problems if channel.is_streamed else _staged_problems
        problems += rules(field, channel)
    if job.kind == "inference" and not any(channel.model for channel in job.inputs):
        do = "add {name: ckpt_url, model: NAME@VERSION}; see python -m flows model list"
        problems.append(Problem("inputs", "a saved model for kind: inference", "none", do))
    if any(channel.needs_credentials for channel in job.inputs):
        problems += _access_problems(job)
    return problems


def _streamed_problems(field: str, channel: "InputChannel") -> list[Problem]:
    problems = []
    if channel.url.startswith("file://") or "://" not in channel.url:
        found = f"the folder {channel.url!r} of one machine"
        do = "use mode: link, which reads such a folder in place"
        problems.append(Problem(f"{field}.mode", "stream", found, do))
    asked = {
        "unpack": "always" if channel.unpack == "always" else None,
        "archive_names": channel.archive_names if channel.archive_names != "utf-8" else None,
        "expect": channel.expect,
    }
    found, do = "mode: stream, which leaves the files where they are", "remove one of them"
    return problems + [
        Problem(f"{field}.{key}", value, found, do) for key, value in asked.items() if value
    ]


def _staged_problems(field: str, channel: "InputChannel") -> list[Problem]:
    problems = []
    if channel.unpack == "never" and channel.archive_names != "utf-8":
        found, do = "unpack: never, so that no name is read", "remove one of them"
        problems.append(Problem(f"{field}.archive_names", channel.archive_names, found, do))
    return problems


def _access_problems(job: "TrainingJob") -> list[Problem]:
    """Find names that the credentials of a streamed channel would take."""
    found = "a variable that mode: stream sets for the script"
    problems = [
        Problem(field, name, found, "remove it, the store's settings have it")
        for field, name in variables_of(job)
        if name in ACCESS_ENV
    ]
    channels: list[tuple[str, InputChannel | OutputChannel]] = [
        (f"inputs[{i}].name", channel) for i, channel in enumerate(job.inputs)
    ]
    channels += [(f"outputs[{i}].name", channel) for i, channel in enumerate(job.outputs)]
    do = "rename the channel, or use given_as: argument"
    return problems + [
        Problem(field, channel.name, found, do)
        for field, channel in channels
        if channel.given_as != "argument" and channel_env_name(channel.name) in ACCESS_ENV
    ]
