"""What `env` and `secrets` of a job may hold: names, and no secret that everyone can read."""

import traceback
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainjob.env_rules import open_secret_problems
from trainjob.errors import JobError
from trainjob.job import TrainingJob
from trainjob.launch.numa import SWITCH

ALGORITHM = {"code": {"url": "/code"}, "boot_file": "train.py"}
PLANTED = "hunter2-is-no-password"


def job_with(**changes: Any) -> TrainingJob:
    return TrainingJob.parse({"name": "x", "algorithm": ALGORITHM} | changes)


def problems_with(**changes: Any) -> list[str]:
    with pytest.raises(JobError) as raised:
        job_with(**changes)
    return [str(problem) for problem in raised.value.problems]


def problems_of_file(folder: Path, **changes: Any) -> list[str]:
    """Return what is wrong with a job that a person is about to run or send."""
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump({"name": "x", "algorithm": ALGORITHM} | changes))
    with pytest.raises(JobError) as raised:
        TrainingJob.load(file)
    return [str(problem) for problem in raised.value.problems]


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "DB_PASSWORD",
        "password",
        "CLIENT_SECRET",
        "comet_apikey",
    ],
)
def test_a_secret_in_env_is_refused_by_its_name_and_not_repeated(name: str, tmp_path: Path) -> None:
    [problem] = problems_of_file(tmp_path, env={name: PLANTED})

    assert problem.startswith(f"env.{name}: asked for a value that everyone who sees the run may")
    assert f"secrets: {{{name}: NAME}}" in problem
    assert PLANTED not in problem


@pytest.mark.parametrize("value", [f"http://me:{PLANTED}@proxy:80", f"postgres://u:{PLANTED}@h/d"])
def test_a_url_with_a_password_in_env_is_refused_and_not_repeated(
    value: str, tmp_path: Path
) -> None:
    [problem] = problems_of_file(tmp_path, env={"WHERE": value})

    assert "env.WHERE: " in problem
    assert "found a url with a password" in problem
    assert PLANTED not in problem


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "false-or-true"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/etc/google.json"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token"),
        ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),
        ("HF_TOKEN", ""),
        ("NUM_TOKENS", "1000000000"),
        ("WHERE", "http://proxy:3128/path/@scope"),
        ("WHERE", "ssh://git@host/path"),
        ("EOS_TOKEN", "<|endoftext|>"),
        ("LLM_PAD_TOKEN", "[PADDING]"),
        ("STOP_TOKEN", "### Response:"),
        ("SPECIAL_TOKEN", "<|assistant|>"),
    ],
)
def test_what_only_looks_like_a_secret_is_taken(name: str, value: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({"name": "x", "algorithm": ALGORITHM, "env": {name: value}}))

    job = TrainingJob.load(file)

    assert job.env == {name: value}
    assert open_secret_problems(job.env) == []


def test_a_secret_in_env_that_is_no_text_is_not_repeated() -> None:
    [problem] = problems_with(env={"HF_TOKEN": [PLANTED]})

    assert problem.startswith("env.HF_TOKEN: ")
    assert PLANTED not in problem


def test_a_secret_in_env_is_told_with_the_other_mistakes_of_a_file(tmp_path: Path) -> None:
    problems = problems_of_file(tmp_path, env={"HF_TOKEN": PLANTED}, launcher="slurm", inputs=3)

    assert [problem.partition(":")[0] for problem in problems] == [
        "env.HF_TOKEN",
        "inputs",
        "launcher",
    ]


def test_a_job_that_was_sent_before_the_rule_runs_on_and_is_warned_of() -> None:
    job = job_with(env={"WANDB_API_KEY": PLANTED})

    [problem] = open_secret_problems(job.env, "warning")

    assert (problem.field, problem.level, problem.id) == (
        "env.WANDB_API_KEY",
        "warning",
        "env-secret",
    )


@pytest.mark.parametrize(
    "name", ["CUDA_VISIBLE_DEVICES", "PATH", "LD_LIBRARY_PATH", "PYTHONUNBUFFERED", "NCCL_DEBUG"]
)
def test_settings_of_the_machine_are_no_secrets(name: str) -> None:
    [problem] = problems_with(secrets={name: "my-key"})

    assert problem.startswith(f"secrets.{name}: asked for {name!r}, found a setting of the machine")
    assert f"env: {{{name}: VALUE}}" in problem


def test_the_key_of_a_service_may_begin_like_a_setting_of_the_machine() -> None:
    assert job_with(secrets={"NVIDIA_API_KEY": "my-key"}).secrets == {"NVIDIA_API_KEY": "my-key"}


@pytest.mark.parametrize(
    "value",
    [
        "hf_AbCdEf123",
        "sk-Proj_4711",
        "hunter2/is+no=name",
        "0123456789abcdef" * 2,
        "",
        "a\nb",
        4711,
    ],
)
def test_whoever_gives_the_value_in_place_of_the_name_does_not_get_it_back(value: Any) -> None:
    with pytest.raises(JobError) as raised:
        job_with(secrets={"API_KEY": value})

    assert [problem.field for problem in raised.value.problems] == ["secrets.API_KEY"]
    told = "".join(traceback.format_exception(raised.value))
    assert "the name of a saved block of the type Secret" in told
    assert not value or str(value) not in told


def test_secrets_that_are_no_names_of_variables_are_not_repeated() -> None:
    [problem] = problems_with(secrets=PLANTED)

    assert PLANTED not in problem


def test_a_job_leaves_its_ranks_on_any_core_and_sets_nothing_else_of_ours() -> None:
    refused = {f"{SWITCH}_X": "1", "TRAINJOB_PARAMS": "1", "OMPI_MCA_btl": "tcp"}

    assert job_with(env={SWITCH: "off"}).env == {SWITCH: "off"}
    assert len(problems_with(env=refused)) == len(refused)


def test_a_variable_gets_its_value_from_one_place() -> None:
    [problem] = problems_with(env={"LEVEL": "1"}, secrets={"LEVEL": "my-level"})

    assert problem.startswith("secrets.LEVEL: asked for 'LEVEL', found env.LEVEL, which gives it")


@pytest.mark.parametrize(
    ("secrets", "expected"),
    [
        ({"my key": "a"}, "secrets.my key: asked for an environment name"),
        ({"RANK": "a"}, "secrets.RANK: asked for 'RANK', found a name that the launcher sets"),
        ({"PREFECT_API_KEY": "a"}, "secrets.PREFECT_API_KEY: asked for 'PREFECT_API_KEY', found"),
        ({"KEY": "not/a name"}, "secrets.KEY: "),
    ],
)
def test_names_of_secrets_are_those_of_variables_and_blocks(
    secrets: dict[str, str], expected: str
) -> None:
    [problem] = problems_with(secrets=secrets)

    assert problem.startswith(expected)


def test_a_channel_does_not_take_the_variable_of_a_secret() -> None:
    inputs = [{"name": "token", "url": "/data"}]

    [problem] = problems_with(inputs=inputs, secrets={"TOKEN": "my-token"})

    assert "inputs[0].name" in problem
    assert "the environment variable TOKEN, which means something else" in problem


def test_a_channel_that_is_streamed_has_its_variables_to_itself() -> None:
    inputs = [{"name": "data_url", "url": "s3://b/data/", "mode": "stream"}]

    [problem] = problems_with(inputs=inputs, secrets={"AWS_SECRET_ACCESS_KEY": "my-key"})

    assert "secrets.AWS_SECRET_ACCESS_KEY: " in problem
