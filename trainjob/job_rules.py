"""The rules of a job that look at several of its fields at once.

Called by the model of the job when each field is right by itself; nothing outside the job is
looked at.
"""

import re
from typing import TYPE_CHECKING

from trainjob.algorithm import merged_hyperparameters
from trainjob.cost import budget_problems
from trainjob.env_rules import RESERVED_ENV, env_problems, variables_of
from trainjob.errors import Problem
from trainjob.git import shown_url
from trainjob.hyperparameter_rules import rule_problems
from trainjob.input_rules import input_rule_problems
from trainjob.launch.environment import is_of_machine
from trainjob.metrics.patterns import metric_problems
from trainjob.parameters import channel_env_name, hyperparameter_problems, option_names
from trainjob.profile_rules import profile_problems
from trainjob.profiles import PROFILES, GivenAs, way_of
from trainjob.resource_rules import resource_problems
from trainjob.url_secrets import without_secrets
from trainjob.values import lacks_a_slash

if TYPE_CHECKING:  # the model calls these rules, so it cannot be imported here
    from trainjob.job import TrainingJob
    from trainjob.limits import Limits

RUN_ID = "{run_id}"
"""What becomes the id of the run in the url of an output."""

_CODE_SCHEMES = ("file", "s3", "git+file", "git+https", "git+ssh")
_STORE_SCHEMES = ("file", "s3", "gs", "abfs", "hdfs", "webhdfs")
_INPUT_SCHEMES = (*_STORE_SCHEMES, "http", "https")


def problems_across_fields(job: "TrainingJob") -> list[Problem]:
    """Return everything in `job` that cannot stand together."""
    return [
        *_url_problems(job),
        *_placeholder_problems(job),
        *_name_problems(job),
        *profile_problems(job),
        *input_rule_problems(job),
        *_hyperparameter_problems(job),
        *_launch_problems(job),
        *resource_problems(job),
        *metric_problems(job.metrics),
        *_limit_problems(job.limits),
        *budget_problems(job),
        *_log_problems(job),
    ]


def written_urls(job: "TrainingJob") -> list[tuple[str, str]]:
    """Return the field and url of every folder that a run writes to."""
    urls = [(f"outputs[{i}].url", channel.url) for i, channel in enumerate(job.outputs)]
    if job.checkpoints:
        urls.append(("checkpoints.url", job.checkpoints.url))
    if job.logs.url is not None:
        urls.append(("logs.url", job.logs.url))
    return urls


def _url_problems(job: "TrainingJob") -> list[Problem]:
    code = job.algorithm.code
    problems = _scheme_problems("algorithm.code.url", code.url, _CODE_SCHEMES)
    for i, channel in enumerate(job.inputs):
        problems += _scheme_problems(f"inputs[{i}].url", channel.url, _INPUT_SCHEMES)
    for field, url in written_urls(job):
        problems += _scheme_problems(field, url, _STORE_SCHEMES)
    if shown_url(code.url) != code.url:
        asked = "a url without a password or query, since everyone who sees the run can read it"
        do = "let git on the machine know them, by a credential helper or an ssh key"
        problems.append(Problem("algorithm.code.url", asked, repr(shown_url(code.url)), do))
    if code.ref is not None and not code.url.startswith("git+"):
        do = "give a git+https://, git+ssh:// or git+file:// url, or remove ref"
        found = f"the url {without_secrets(code.url)!r}"
        problems.append(Problem("algorithm.code.ref", f"ref {code.ref!r}", found, do))
    return problems


def _scheme_problems(field: str, url: str, known: tuple[str, ...]) -> list[Problem]:
    accepted = ", ".join(f"{scheme}://" for scheme in known) + " or a path"
    shown = repr(without_secrets(url))
    if lacks_a_slash(url):
        return [Problem(field, f"one of {accepted}", shown, "write // behind the colon")]
    if "://" not in url:
        return []
    if url.partition("://")[0] not in known:
        return [Problem(field, f"one of {accepted}", shown, "use one of these")]
    bucket = url.removeprefix("s3://").partition("/")[0]
    if url.startswith("s3://") and re.search("[@:]", bucket):
        found = "something before an @ or with a :, which may be a password"
        return [Problem(field, "s3://bucket/prefix/", found, "name the bucket alone")]
    if url.startswith("s3://") and not bucket:
        return [Problem(field, "s3://bucket/prefix/", shown, "name the bucket")]
    if url.startswith("file://") and not url.startswith("file:///"):
        return [Problem(field, "file:///path", shown, "write three slashes and the full path")]
    return [] if url.startswith("git+") else _secret_problems(field, url)


def _secret_problems(field: str, url: str) -> list[Problem]:
    """Find what may be a password, and must not be repeated, in the url of another store."""
    scheme, _, rest = url.partition("://")
    has_password = ":" in rest.partition("/")[0].rpartition("@")[0]
    if not has_password and not (scheme in ("http", "https") and re.search(r"[@?#]", rest)):
        return []
    asked = f"{scheme}://HOST/PATH without password or query, which everyone who sees the run reads"
    do = "give them to the driver of fsspec on the machine, such as by its environment"
    return [Problem(field, asked, "something before an @, or a ? or #", do)]


def _name_problems(job: "TrainingJob") -> list[Problem]:
    """Find names that would overwrite one another as arguments or environment variables."""
    problems: list[Problem] = []
    taken: dict[tuple[str, str], str] = {}
    channels = _named_channels(job)
    variables = {name for _, name in variables_of(job)}
    for field, name, way in channels:
        env_name = channel_env_name(name)
        keys = [("name", name), *([("env", env_name)] if way != "argument" else [])]
        other = next((taken[key] for key in keys if key in taken), None)
        if other is not None:
            found = f"the same name at {other}"
            problems.append(Problem(field, f"the channel {name!r}", found, "rename one of them"))
        elif way != "argument" and _means_something_else(env_name, variables):
            found = f"the environment variable {env_name}, which means something else"
            do = "rename the channel, or use given_as: argument"
            problems.append(Problem(field, f"the channel {name!r}", found, do))
        for key in keys:
            taken.setdefault(key, field)
    arguments = {name: field for field, name, way in channels if way != "env"}
    for name, value in job.given_hyperparameters.items():
        for option in option_names(name, value, job.algorithm.arguments):
            if option in arguments:
                found = f"a channel of that name at {arguments[option]}"
                field = f"hyperparameters.{name}"
                problems.append(Problem(field, f"--{option}", found, "rename one of them"))
    return [*problems, *env_problems(job), *_overlapping_folders(job)]


def _named_channels(job: "TrainingJob") -> list[tuple[str, str, GivenAs]]:
    """Return the field, the name and the way of everything that is given like a channel."""
    profile = PROFILES[job.profile]
    channels: list[tuple[str, str, GivenAs]] = [
        (f"inputs[{i}].name", c.name, way_of(profile.inputs, c.name, c.given_as))
        for i, c in enumerate(job.inputs)
    ]
    channels += [
        (f"outputs[{i}].name", c.name, way_of(profile.outputs, c.name, c.given_as))
        for i, c in enumerate(job.outputs)
    ]
    if job.checkpoints:
        channels.append(("checkpoints.name", job.checkpoints.name, "both"))
    return channels


def _means_something_else(env_name: str, given: set[str]) -> bool:
    return bool(RESERVED_ENV.fullmatch(env_name)) or is_of_machine(env_name) or env_name in given


def _hyperparameter_problems(job: "TrainingJob") -> list[Problem]:
    algorithm = job.algorithm
    merged = merged_hyperparameters(algorithm, job.hyperparameters)
    return [
        *rule_problems("algorithm.hyperparameters", algorithm.hyperparameters, algorithm.arguments),
        *merged.problems,
        *hyperparameter_problems(merged.values, algorithm.arguments),
    ]


def _placeholder_problems(job: "TrainingJob") -> list[Problem]:
    """Find words in braces that would become part of a name as they are."""
    problems = []
    places = [
        *((f"inputs[{i}].url", channel.url, ()) for i, channel in enumerate(job.inputs)),
        *((field, url, (RUN_ID,)) for field, url in written_urls(job)),
    ]
    for field, url, known in places:
        for word in re.findall(r"\{[^{}]*\}", url):
            if word not in known:
                do = f"write {RUN_ID}" if known else "write the url in full"
                problems.append(Problem(field, "a url", f"{word!r} in it", do))
    return problems


def _overlapping_folders(job: "TrainingJob") -> list[Problem]:
    """Find folders to write of which one lies in another, or in an input."""
    problems = []
    asked, do = "a folder of its own", "use another folder"
    written = [(field, url.rstrip("/") + "/") for field, url in written_urls(job)]
    for i, (field, folder) in enumerate(written):
        for j, source in enumerate(job.inputs):
            if folder.startswith(source.url.rstrip("/") + "/"):
                found = f"inputs[{j}].url above it, so that the next run would read the results"
                problems.append(Problem(field, asked, found, do))
        for j, (other_field, other) in enumerate(written):
            if i != j and folder.startswith(other) and (folder != other or i > j):
                found = f"{other_field}, which is the same folder or above it"
                problems.append(Problem(field, asked, found, do))
    return problems


def _launch_problems(job: "TrainingJob") -> list[Problem]:
    processes = job.resources.processes_per_node
    if job.launcher == "single" and processes > 1:
        found = "launcher single, which starts 1"
        do = "set launcher to torchrun, mpi or msrun, or processes_per_node to 1"
        return [Problem("resources.processes_per_node", f"{processes} processes", found, do)]
    return []


def _limit_problems(limits: "Limits") -> list[Problem]:
    target = limits.target
    if target and (target.at_least is None) == (target.at_most is None):
        found = "neither" if target.at_least is None else "both"
        do = "write at_least for a metric that grows, at_most for one that falls"
        return [Problem("limits.target", "either at_least or at_most", found, do)]
    return []


def _log_problems(job: "TrainingJob") -> list[Problem]:
    if job.resources.device == "npu" and job.logs.url is None:
        # ModelArts, creating a training job: the log path of Ascend flavors is required.
        do = "give a folder that is empty, such as s3://bucket/logs/{run_id}/"
        return [Problem("logs.url", "a place for the logs of device npu", "none", do)]
    return []
