"""The keys of an input channel: what each accepts, and what cannot stand together."""

from pathlib import Path
from typing import Any

import pytest

from trainjob.errors import JobError
from trainjob.job import TrainingJob
from trainjob.parameters import parameter_argv, parameter_environment
from trainjob.places import channel_places
from trainjob.workspace import Workspace

ALGORITHM = {"code": {"url": "/code"}, "boot_file": "train.py"}
PIN = "sha256:" + "0123456789abcdef" * 4


def job_with(*inputs: dict[str, Any], **changes: Any) -> TrainingJob:
    channels = [{"name": "data_url", "url": "s3://b/data/"} | channel for channel in inputs]
    return TrainingJob.parse({"name": "x", "algorithm": ALGORITHM, "inputs": channels} | changes)


def problems_with(*inputs: dict[str, Any], **changes: Any) -> list[str]:
    with pytest.raises(JobError) as raised:
        job_with(*inputs, **changes)
    return [str(problem) for problem in raised.value.problems]


def test_a_name_and_a_url_are_enough_for_a_channel() -> None:
    [channel] = job_with({}).inputs

    assert (channel.mode, channel.unpack, channel.archive_names) == ("link", "auto", "utf-8")
    assert channel.expect is None


def test_every_key_is_accepted_where_it_makes_sense() -> None:
    channels = [
        {"mode": "copy", "unpack": "always", "archive_names": "gbk", "expect": PIN},
        {"name": "shards", "unpack": "never"},
        {"name": "remote", "mode": "stream"},
    ]

    job = job_with(*channels)

    assert TrainingJob.parse(job.model_dump(mode="json")) == job


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        ({"mode": "fuse"}, "inputs[0].mode: asked for 'link', 'copy' or 'stream', found 'fuse'"),
        ({"unpack": True}, "inputs[0].unpack: asked for 'auto', 'always' or 'never', found True"),
        ({"archive_names": "latin"}, "inputs[0].archive_names: asked for 'utf-8', 'gbk',"),
        ({"expect": "sha256:1"}, "inputs[0].expect: asked for sha256: and 64 digits of 0-9 and a"),
        ({"expect": PIN.upper()}, "inputs[0].expect: asked for sha256: and 64 digits of 0-9 and"),
        (
            {"unpack": "never", "archive_names": "gbk"},
            "inputs[0].archive_names: asked for gbk, found unpack: never, so that no name is read; "
            "remove one of them",
        ),
        (
            {"mode": "stream", "url": "/data"},
            "inputs[0].mode: asked for stream, found the folder '/data' of one machine; "
            "use mode: link, which reads such a folder in place",
        ),
    ],
)
def test_one_mistake_is_one_problem_at_its_key(channel: dict[str, Any], expected: str) -> None:
    problems = problems_with(channel)

    assert len(problems) == 1
    assert problems[0].startswith(expected)


def test_everything_that_streaming_excludes_is_told_at_once() -> None:
    keys = {"unpack": "always", "archive_names": "gbk", "expect": PIN}

    problems = problems_with({"mode": "stream", "url": "file:///data"} | keys)

    assert [problem.partition(":")[0] for problem in problems] == [
        f"inputs[0].{key}" for key in ("mode", *keys)
    ]
    assert all("mode: stream, which leaves the files where they are" in p for p in problems[1:])


def test_nothing_takes_the_variables_of_the_credentials_of_a_streamed_channel() -> None:
    places = {
        "env": {"AWS_REGION": "x", "AWS_PROFILE": "y"},
        "outputs": [{"name": "aws_endpoint_url", "url": "/out"}],
    }

    problems = problems_with({"mode": "stream"}, **places)

    assert problems == [
        "env.AWS_REGION: asked for AWS_REGION, found a variable that mode: stream sets for the "
        "script; remove it, the store's settings have it",
        "outputs[0].name: asked for aws_endpoint_url, found a variable that mode: stream sets for "
        "the script; rename the channel, or use given_as: argument",
    ]
    assert job_with({}, **places).env["AWS_REGION"] == "x"


@pytest.mark.parametrize("scheme", ["gs", "abfs", "hdfs", "webhdfs", "https", "http"])
def test_an_input_may_be_in_another_store_that_fsspec_reads(scheme: str) -> None:
    [channel] = job_with({"url": f"{scheme}://place/data/"}).inputs

    assert not channel.needs_credentials


@pytest.mark.parametrize(
    "url",
    [
        "https://me:secret@host/data/",
        "https://secret@host/data/",
        "https://host/data/?token=secret",
        "https://host/data/#secret",
        "webhdfs://me:secret@host/data/",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    [problem] = problems_with({"url": url})

    assert problem.startswith(f"inputs[0].url: asked for {url.partition(':')[0]}://HOST/PATH with")
    assert "secret" not in problem


def test_a_user_alone_is_no_secret() -> None:
    url = "abfs://container@account.dfs.core.windows.net/data/"

    assert job_with({"url": url}).inputs[0].url == url


def test_only_channels_on_s3_that_are_streamed_need_credentials() -> None:
    channels = [{"mode": "stream"}, {"name": "b"}, {"name": "c", "mode": "stream", "url": "gs://b"}]

    inputs = job_with(*channels, env={}).inputs

    assert [channel.needs_credentials for channel in inputs] == [True, False, False]


def test_a_streamed_channel_is_its_url_for_the_script(tmp_path: Path) -> None:
    job = job_with({"mode": "stream"}, {"name": "labels"})
    workspace = Workspace(tmp_path)

    places = channel_places(job, workspace)

    assert parameter_argv(places, {}) == [
        *("--data_url", "s3://b/data/"),
        *("--labels", str(tmp_path / "inputs" / "labels")),
    ]
    environment = parameter_environment(places, {}, tmp_path / "params.json")
    assert environment["DATA_URL"] == "s3://b/data/"
