"""`given_as`: how the script gets the folder of a channel, and which names clash then."""

from pathlib import Path
from typing import Any

import pytest

from trainjob.errors import JobError
from trainjob.job import TrainingJob
from trainjob.places import channel_places
from trainjob.plan import Program, program_of
from trainjob.workspace import Workspace

ALGORITHM = {"code": {"url": "/code"}, "boot_file": "train.py"}
DATA = {"name": "data_url", "url": "s3://b/data/"}
OUT = {"name": "train_url", "url": "s3://b/out/"}


def job_with(*inputs: dict[str, Any], **changes: Any) -> TrainingJob:
    job = {"name": "x", "algorithm": ALGORITHM, "inputs": list(inputs)}
    return TrainingJob.parse(job | changes)


def program_with(*inputs: dict[str, Any], **changes: Any) -> Program:
    return program_of(job_with(*inputs, **changes), Workspace(Path("/run")))


def problems_with(*inputs: dict[str, Any], **changes: Any) -> list[str]:
    with pytest.raises(JobError) as raised:
        job_with(*inputs, **changes)
    return [str(problem) for problem in raised.value.problems]


@pytest.mark.parametrize(
    ("given_as", "is_argument", "is_variable"),
    [(None, True, True), ("both", True, True), ("argument", True, False), ("env", False, True)],
)
def test_a_channel_is_given_as_the_job_says(given_as, is_argument, is_variable) -> None:
    inputs, outputs = [DATA | {"given_as": given_as}], [OUT | {"given_as": given_as}]

    program = program_with(*inputs, outputs=outputs)

    for name, env_name in (("--data_url", "DATA_URL"), ("--train_url", "TRAIN_URL")):
        assert (name in program.argv) == is_argument
        assert (env_name in program.env) == is_variable


def test_every_channel_stays_in_the_file_of_parameters() -> None:
    job = job_with(DATA | {"given_as": "argument"}, outputs=[OUT | {"given_as": "env"}])

    assert list(channel_places(job, Workspace(Path("/run")))) == ["data_url", "train_url"]


def test_without_a_word_the_product_decides() -> None:
    channel = {"name": "dataset", "url": "s3://b/data/"}

    usual = program_with(channel, profile="openi-gpu")
    asked = program_with(channel | {"given_as": "both"}, profile="openi-gpu")

    assert "--dataset" not in usual.argv
    assert asked.argv[1:] == ("--dataset", "/dataset")
    assert usual.env["DATASET"] == asked.env["DATASET"] == "/dataset"


def test_a_streamed_channel_may_be_given_to_a_script_that_gets_no_url_otherwise() -> None:
    channel = {"name": "train", "url": "s3://b/data/", "mode": "stream"}

    [problem] = problems_with(channel, profile="tione")
    program = program_with(channel | {"given_as": "argument"}, profile="tione")

    assert problem.startswith("inputs[0].mode: asked for stream, found profile tione")
    assert program.argv[1:] == ("--train", "s3://b/data/")


def test_another_way_is_refused_with_those_that_there_are() -> None:
    assert problems_with(DATA | {"given_as": "hyperparameter"}) == [
        "inputs[0].given_as: asked for 'argument', 'env' or 'both', found 'hyperparameter'; "
        "change it"
    ]


def test_a_variable_that_means_something_else_is_refused_unless_it_is_not_used() -> None:
    channel = {"name": "path", "url": "s3://b/data/"}

    assert problems_with(channel) == [
        "inputs[0].name: asked for the channel 'path', found the environment variable PATH, which "
        "means something else; rename the channel, or use given_as: argument"
    ]
    assert "PATH" not in program_with(channel | {"given_as": "argument"}).env


def test_a_variable_of_the_job_is_not_overwritten() -> None:
    [problem] = problems_with(DATA, env={"DATA_URL": "x"})
    program = program_with(DATA | {"given_as": "argument"}, env={"DATA_URL": "x"})

    assert "the environment variable DATA_URL, which means something else" in problem
    assert program.env["DATA_URL"] == "x"


def test_a_variable_of_the_product_is_not_overwritten() -> None:
    channel = {"name": "ma_home", "url": "s3://b/data/"}

    [problem] = problems_with(channel, profile="modelarts")
    program = program_with(channel | {"given_as": "argument"}, profile="modelarts")

    assert problem.startswith("inputs[0].name: asked for the channel 'ma_home', found a variable ")
    assert problem.endswith("; rename the channel, or use given_as: argument")
    assert program.env["MA_HOME"] == "/home/ma-user"


def test_the_credentials_of_a_stream_are_not_overwritten() -> None:
    streamed = DATA | {"mode": "stream"}
    channel = {"name": "aws_region", "url": "s3://b/regions/"}

    [problem] = problems_with(streamed, channel)

    assert problem.endswith("; rename the channel, or use given_as: argument")
    assert job_with(streamed, channel | {"given_as": "argument"})


def test_two_names_of_one_variable_are_refused_unless_one_does_not_use_it() -> None:
    other = {"name": "data-url", "url": "s3://b/more/"}

    [problem] = problems_with(DATA, other)
    program = program_with(DATA, other | {"given_as": "argument"})

    assert problem == (
        "inputs[1].name: asked for the channel 'data-url', found the same name at inputs[0].name; "
        "rename one of them"
    )
    assert program.env["DATA_URL"] == "/run/inputs/data_url"
    assert program.argv[3:] == ("--data-url", "/run/inputs/data-url")


@pytest.mark.parametrize("given_as", ["argument", "env", "both"])
def test_two_channels_never_have_one_name(given_as) -> None:
    [problem] = problems_with(DATA, DATA | {"url": "s3://b/more/", "given_as": given_as})

    assert "found the same name at inputs[0].name" in problem


def test_an_argument_of_a_hyperparameter_is_refused_unless_the_channel_is_none() -> None:
    [problem] = problems_with(DATA, hyperparameters={"data_url": 1})
    program = program_with(DATA | {"given_as": "env"}, hyperparameters={"data_url": 1})

    assert problem.startswith("hyperparameters.data_url: asked for --data_url, found a channel of")
    assert program.argv[1:] == ("--data_url", "1")
    assert program.env["DATA_URL"] == "/run/inputs/data_url"
