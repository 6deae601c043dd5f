"""What in a job breaks the rules of the product that its profile names.

Called by `trainjob.job_rules`. How much code there may be is asked where it is fetched, by
`trainjob.code_limits`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trainjob.env_rules import variables_of
from trainjob.errors import Problem
from trainjob.parameters import channel_env_name
from trainjob.profiles import PROFILES, Place, Profile, place_of

if TYPE_CHECKING:  # the model calls these rules, so it cannot be imported here
    from trainjob.job import InputChannel, OutputChannel, TrainingJob


def profile_problems(job: "TrainingJob") -> list[Problem]:
    """Return what `job` has that its product does not allow or have."""
    profile = PROFILES[job.profile]
    return [
        *_basic_problems(job, profile),
        *_channel_problems(job, "inputs", job.inputs, profile.inputs),
        *_channel_problems(job, "outputs", job.outputs, profile.outputs),
        *_stream_problems(job, profile),
        *_environment_problems(job, profile),
        *_value_problems(job, profile),
    ]


def _basic_problems(job: "TrainingJob", profile: Profile) -> list[Problem]:
    problems = []
    if not re.fullmatch(profile.name_rule, job.name):
        asked = f"a name of profile {job.profile}: {profile.name_words}"
        length = f" of {len(job.name)} characters" if len(job.name) > 30 else ""
        problems.append(Problem("name", asked, f"{job.name!r}{length}", "rename it"))
    if len(job.description) > profile.max_description:
        asked = f"at most {profile.max_description} characters with profile {job.profile}"
        found = f"{len(job.description)} characters"
        problems.append(Problem("description", asked, found, "shorten it"))
    if job.resources.device not in profile.devices:
        known = " or ".join(profile.devices)
        found = f"profile {job.profile}, which is of {known}"
        do = "change the device or the profile"
        problems.append(Problem("resources.device", job.resources.device, found, do))
    return problems


def _channel_problems(
    job: "TrainingJob",
    key: str,
    channels: "Sequence[InputChannel | OutputChannel]",
    places: Mapping[str, Place],
) -> list[Problem]:
    """Find channels that the product does not have, and two that would be one folder."""
    problems: list[Problem] = []
    taken: dict[str, int] = {}
    for i, channel in enumerate(channels):
        place = place_of(places, channel.name)
        asked = f"the channel {channel.name!r}"
        if place is None:
            found = f"profile {job.profile}, whose {key} are {' and '.join(places)}"
            problems.append(Problem(f"{key}[{i}].name", asked, found, "use one of these names"))
        elif place.path is not None:
            path = place.path.format(name=channel.name, index=i)
            if path in taken and path == place.path:  # else it is a name given twice
                found = f"{key}[{taken[path]}], which profile {job.profile} has at {path}, too"
                problems.append(Problem(f"{key}[{i}].name", asked, found, "keep one of them"))
            taken.setdefault(path, i)
    return problems


def _stream_problems(job: "TrainingJob", profile: Profile) -> list[Problem]:
    problems = []
    for i, channel in enumerate(job.inputs):
        place = place_of(profile.inputs, channel.name)
        is_folder_only = place is not None and place.given_as == "env"
        if channel.is_streamed and is_folder_only and channel.given_as is None:
            found = f"profile {job.profile}, whose scripts read a folder and get no url"
            do = "use mode: link or copy"
            problems.append(Problem(f"inputs[{i}].mode", "stream", found, do))
    return problems


def _environment_problems(job: "TrainingJob", profile: Profile) -> list[Problem]:
    found = f"a variable that profile {job.profile} sets for every rank"
    problems = [
        Problem(field, repr(name), found, "remove it")
        for field, name in variables_of(job)
        if name in profile.environment
    ]
    channels: list[tuple[str, InputChannel | OutputChannel]] = [
        (f"inputs[{i}].name", channel) for i, channel in enumerate(job.inputs)
    ]
    channels += [(f"outputs[{i}].name", channel) for i, channel in enumerate(job.outputs)]
    do = "rename the channel, or use given_as: argument"
    return problems + [
        Problem(place, f"the channel {channel.name!r}", found, do)
        for place, channel in channels
        if channel.given_as != "argument" and channel_env_name(channel.name) in profile.environment
    ]


def _value_problems(job: "TrainingJob", profile: Profile) -> list[Problem]:
    """Find texts that the product's form takes for no hyperparameter."""
    if profile.value_rule is None:
        return []
    places = [(f"hyperparameters.{name}", value) for name, value in job.hyperparameters.items()]
    for i, rule in enumerate(job.algorithm.hyperparameters):
        field = f"algorithm.hyperparameters[{i}]"
        places += [(f"{field}.default", rule.default), (f"{field}.choices", list(rule.choices))]
    asked = f"letters, digits, -, _, commas, periods and spaces with profile {job.profile}"
    problems = []
    for field, value in places:
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str) and not re.fullmatch(profile.value_rule, text):
                do = "change it, or give it in env or as a channel"
                problems.append(Problem(field, asked, repr(text), do))
    return problems
