"""The job model: what it accepts, and how it explains what it does not."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from trainjob.errors import JobError
from trainjob.flavors import Flavor
from trainjob.job import TrainingJob, url_of_run
from trainjob.limits import Target

MINIMAL = {"name": "x", "algorithm": {"code": {"url": "code"}, "boot_file": "train.py"}}


def problems_in(data: object) -> list[str]:
    with pytest.raises(JobError) as raised:
        TrainingJob.parse(data)
    return [str(problem) for problem in raised.value.problems]


def test_a_name_and_an_algorithm_are_enough() -> None:
    job = TrainingJob.parse(MINIMAL)

    assert job.launcher == "single"
    assert job.world_size == 1
    assert job.algorithm.kind == "script"
    assert job.inputs == []
    assert job.limits.grace == timedelta(seconds=60)


def test_a_job_survives_the_trip_through_json() -> None:
    job = TrainingJob.parse(
        MINIMAL
        | {
            "inputs": [{"name": "data_url", "url": "s3://b/data/"}],
            "outputs": [{"name": "train_url", "url": "s3://b/out/{run_id}/"}],
            "hyperparameters": {"lr": 0.01, "flag": True, "n": 3, "layers": [1, 2.5, "x"]},
            "resources": {"processes_per_node": 2, "flavor": "2c4g"},
            "launcher": "torchrun",
            "limits": {"auto_stop": "1h30m", "grace": "5s"},
        }
    )

    again = TrainingJob.model_validate_json(job.model_dump_json())

    assert again == job
    assert json.loads(job.model_dump_json())["limits"]["auto_stop"] == "1h30m"
    assert again.resources.flavor == Flavor(cores=2, memory_gib=4)
    assert [type(v) for v in again.hyperparameters.values()] == [float, bool, int, list]


def test_the_kind_of_algorithm_follows_from_its_keys_when_it_is_not_named() -> None:
    data = {"name": "x", "algorithm": {"kind": "command", "code": {"url": "c"}, "command": "sh x"}}

    assert TrainingJob.parse(data).algorithm.kind == "command"


def test_numbers_in_env_are_taken_as_text() -> None:
    assert TrainingJob.parse(MINIMAL | {"env": {"OMP_NUM_THREADS": 4}}).env == {
        "OMP_NUM_THREADS": "4"
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"hyperparamters": {}},
            "hyperparamters: asked for a known key, found 'hyperparamters'; "
            "did you mean 'hyperparameters'?",
        ),
        ({"name": "-x"}, "name: asked for 1 to 64 letters, digits, - and _, not starting with -"),
        ({"name": "x" * 65}, "name: asked for 1 to 64 letters"),
        ({"name": "x\n"}, "name: asked for 1 to 64 letters"),
        (
            {"launcher": "horovod"},
            "launcher: asked for 'single', 'torchrun', 'mpi' or 'msrun', found",
        ),
        ({"resources": {"nodes": 2}}, "resources.nodes: asked for 1, found 2"),
        (
            {"resources": {"processes_per_node": 2}},
            "resources.processes_per_node: asked for 2 processes, found launcher single",
        ),
        ({"resources": {"flavor": "big"}}, "resources.flavor: asked for a flavor as cores and GiB"),
        ({"resources": {"device": "gpu"}}, "resources.device: asked for 'cpu', 'cuda' or 'npu'"),
        ({"limits": {"grace": 60}}, "limits.grace: asked for a duration with its unit"),
        ({"limits": {"auto_stop": "73h"}}, "limits.auto_stop: asked for a duration above 0s"),
        ({"inputs": [{"name": "a", "url": "ftp://h/x"}]}, "inputs[0].url: asked for one of file"),
        ({"inputs": [{"name": "a", "url": "s3:///x"}]}, "inputs[0].url: asked for s3://bucket/"),
        ({"inputs": [{"name": "a", "url": "file://x"}]}, "inputs[0].url: asked for file:///path"),
        (
            {"outputs": [{"name": "a", "url": "s3:/bucket/x/"}]},
            "outputs[0].url: asked for one of file://, s3://",
        ),
        ({"inputs": [{"name": "a", "url": " "}]}, "inputs[0].url: asked for one line of text"),
        ({"outputs": [{"name": "a"}]}, "outputs[0].url: asked for a value, found nothing"),
        ({"inputs": [{"name": "rank", "url": "x"}]}, "inputs[0].name: asked for the channel"),
        ({"inputs": [{"name": "path", "url": "x"}]}, "inputs[0].name: asked for the channel 'path"),
        ({"outputs": [{"name": "Home", "url": "x"}]}, "outputs[0].name: asked for the channel 'H"),
        ({"inputs": [{"name": "a", "url": "s3://k:s@b/x"}]}, "inputs[0].url: asked for s3://buc"),
        ({"outputs": [{"name": "a", "url": "o/{runid}"}]}, "outputs[0].url: asked for a url, fo"),
        ({"inputs": [{"name": "a", "url": "o/{run_id}"}]}, "inputs[0].url: asked for a url, fou"),
        ({"hyperparameters": {"a": 2**63}}, "hyperparameters.a: asked for an integer of at most"),
        ({"hyperparameters": {"a": [2**64]}}, "hyperparameters.a[0]: asked for an integer of at"),
        ({"hyperparameters": {"-lr": 1}}, "hyperparameters.-lr: asked for 1 to 64 letters"),
        ({"hyperparameters": {"a": "\0"}}, "hyperparameters.a: asked for a text without NUL"),
        ({"hyperparameters": {"a": {}}}, "hyperparameters.a: asked for a text, a number"),
        ({"hyperparameters": {"a": None}}, "hyperparameters.a: asked for a text, a number"),
        ({"hyperparameters": {"a": float("nan")}}, "hyperparameters.a: asked for a text, a"),
        ({"env": {"WORLD_SIZE": "2"}}, "env.WORLD_SIZE: asked for 'WORLD_SIZE', found a name that"),
        ({"env": {"A=B": "2"}}, "env.A=B: asked for an environment name"),
        ({"env": {"A": "x\0"}}, "env.A: asked for text without a NUL character"),
        ({"limits": {"auto_stop": "73h"}}, "limits.auto_stop: asked for a duration above 0s and"),
        ({"limits": {"auto_stop": "0s"}}, "limits.auto_stop: asked for a duration above 0s and"),
        ({"limits": {"stall": 600}}, "limits.stall: asked for a duration with its unit"),
        ({"limits": {"auto_restart": 11}}, "limits.auto_restart: asked for"),
        ({"limits": {"restart_on": "always"}}, "limits.restart_on: asked for"),
        ({"limits": {"target": {"metric": "a"}}}, "limits.target: asked for either at_least or"),
        (
            {"limits": {"target": {"metric": "a", "at_least": 1, "at_most": 2}}},
            "limits.target: asked for either at_least or at_most, found both",
        ),
        ({"checkpoints": {"url": "ftp://h/a"}}, "checkpoints.url: asked for one of file://"),
        ({"checkpoints": {"url": "s3://b/{epoch}"}}, "checkpoints.url: asked for a url, found"),
        ({"checkpoints": {"url": "a", "name": "path"}}, "checkpoints.name: asked for the channel"),
        ({"logs": {"url": "s3:///a"}}, "logs.url: asked for s3://bucket/prefix/"),
        ({"logs": {"ranks": "1"}}, "logs.ranks: asked for"),
        ({"resources": {"device": "npu"}}, "logs.url: asked for a place for the logs of device"),
    ],
)
def test_one_mistake_is_one_problem_at_its_field(change: dict[str, object], expected: str) -> None:
    problems = problems_in(MINIMAL | change)

    assert len(problems) == 1
    assert problems[0].startswith(expected)


def test_two_channels_of_one_name_are_refused() -> None:
    channels = [{"name": "data-url", "url": "a"}, {"name": "data_url", "url": "b"}]

    assert problems_in(MINIMAL | {"inputs": channels}) == [
        "inputs[1].name: asked for the channel 'data_url', found the same name at inputs[0].name; "
        "rename one of them"
    ]


def test_a_hyperparameter_must_not_hide_a_channel() -> None:
    change = {"inputs": [{"name": "lr", "url": "a"}], "hyperparameters": {"lr": 1}}

    assert "hyperparameters.lr: asked for --lr, found a channel" in problems_in(MINIMAL | change)[0]


def test_an_output_inside_another_is_refused() -> None:
    outputs = [{"name": "a", "url": "s3://b/x/y/"}, {"name": "b", "url": "s3://b/x"}]

    problems = problems_in(MINIMAL | {"outputs": outputs})

    assert problems == [
        "outputs[0].url: asked for a folder of its own, found outputs[1].url, which is the same "
        "folder or above it; use another folder"
    ]


def test_an_output_inside_an_input_is_refused() -> None:
    change = {"inputs": [{"name": "a", "url": "d"}], "outputs": [{"name": "b", "url": "d/o"}]}

    assert problems_in(MINIMAL | change)[0].startswith("outputs[0].url: asked for a folder of its")


def test_checkpoints_and_logs_need_folders_of_their_own() -> None:
    change = {
        "outputs": [{"name": "o", "url": "out"}],
        "checkpoints": {"url": "out/checkpoints"},
        "logs": {"url": "out"},
    }

    assert [problem.partition(",")[0] for problem in problems_in(MINIMAL | change)] == [
        "checkpoints.url: asked for a folder of its own",
        "checkpoints.url: asked for a folder of its own",
        "logs.url: asked for a folder of its own",
    ]


@pytest.mark.parametrize("off", ["off", None, False])
def test_a_limit_can_be_off(off: object) -> None:
    job = TrainingJob.parse(MINIMAL | {"limits": {"auto_stop": off, "stall": off}})

    assert (job.limits.auto_stop, job.limits.stall) == (None, None)


def test_a_target_is_reached_from_its_side() -> None:
    loss = Target(metric="loss", at_most=0.1)
    accuracy = Target(metric="accuracy", at_least=0.9)

    assert [loss.is_reached(value) for value in (0.11, 0.1, float("nan"))] == [False, True, False]
    assert [accuracy.is_reached(v) for v in (0.89, 0.9, float("nan"))] == [False, True, False]


def test_an_algorithm_with_a_command_needs_no_kind() -> None:
    data = {"name": "x", "algorithm": {"code": {"url": "c"}, "command": ""}}

    assert problems_in(data)[0].startswith("algorithm.command: asked for one line of text")


def test_only_git_code_has_a_ref() -> None:
    data = {"name": "x", "algorithm": {"code": {"url": "c", "ref": "v1"}, "boot_file": "t.py"}}

    assert problems_in(data)[0].startswith("algorithm.code.ref: asked for ref 'v1', found the url")


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    code = {"url": "git+https://me:token-of-mine@example.org/x.git"}
    data = {"name": "x", "algorithm": {"code": code, "boot_file": "t.py"}}

    [problem] = problems_in(data)

    assert problem.startswith("algorithm.code.url: asked for a url without a password")
    assert "token-of-mine" not in problem


@pytest.mark.parametrize(
    "url",
    [
        "https://ci:s3cr3t@example.org/x.git",
        "git+http://ci:s3cr3t@example.org/x.git",
        "ftp://ci:s3cr3t@example.org/x",
        "S3://KEY:s3/cr3t@bucket/x",
        "s3://KEY:s3/cr3t@bucket/x",
        "file://ci:s3cr3t@example.org/x",
        "az://container/data?sig=s3cr3t",
        "gs://ci:s3cr3t@bucket/x",
        "https://ci:s3cr3t@example.org/x\0",
    ],
)
@pytest.mark.parametrize("place", ["code", "ref", "input", "output", "checkpoints", "logs"])
def test_no_problem_of_a_job_repeats_the_secret_in_a_url(url: str, place: str) -> None:
    folder = {"url": url}
    data: dict[str, Any] = {
        "name": "x",
        "algorithm": {"code": {"url": "c"}, "boot_file": "t.py"},
        "limits": {"grace": "a while"},
    }
    match place:
        case "code":
            data["algorithm"]["code"] = folder
        case "ref":
            data["algorithm"]["code"] = {**folder, "ref": "v1"}
        case "input" | "output":
            data[f"{place}s"] = [{"name": "d", **folder}]
        case _:
            data[place] = folder

    problems = problems_in(data)

    assert len(problems) > 1
    assert not [problem for problem in problems if "s3cr3t" in problem or "s3/cr3t" in problem]


def test_all_mistakes_are_told_at_once_those_across_fields_included() -> None:
    problems = problems_in(
        {
            "name": "bad name",
            "algorithm": {"kind": "script", "code": {"url": "c", "reff": 1}},
            "inputs": [{"name": "d", "url": "a"}, {"name": "d", "url": "ftp://h/b"}],
            "resources": {"processes_per_node": "two"},
            "env": {"RANK": "1"},
        }
    )

    assert [problem.partition(":")[0] for problem in problems] == [
        "name",
        "algorithm.code.reff",
        "algorithm.boot_file",
        "resources.processes_per_node",
        "inputs[1].url",
        "inputs[1].name",
        "env.RANK",
    ]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"limits": {"target": {"metric": "a", "at_least": "hi"}}}, "limits.target.at_least"),
        ({"metrics": [{"name": "a"}]}, "metrics[0].regex"),
        ({"metrics": [{"name": "?", "regex": "(a)"}]}, "metrics[0].name"),
        ({"limits": {"stall": 0}}, "limits.stall"),
    ],
)
def test_what_is_left_of_a_wrong_part_is_not_found_fault_with(
    change: dict[str, object], field: str
) -> None:
    assert [problem.partition(":")[0] for problem in problems_in(MINIMAL | change)] == [field]


def test_problems_of_the_other_kind_of_algorithm_are_not_told() -> None:
    problems = problems_in({"name": "x", "algorithm": {"kind": "command", "code": {"url": "c"}}})

    assert problems == [
        "algorithm.command: asked for a value, found nothing; add command: to the job"
    ]


def test_relative_paths_are_relative_to_the_job_file(tmp_path: Path) -> None:
    file = tmp_path / "jobs" / "job.yaml"
    file.parent.mkdir()
    file.write_text(
        "name: x\n"
        "algorithm: {code: {url: ../code}, boot_file: train.py}\n"
        "inputs: [{name: a, url: data/}, {name: b, url: 's3://bucket/b'}]\n"
        "outputs: [{name: o, url: 'out/{run_id}'}]\n"
    )

    job = TrainingJob.load(file)

    assert job.algorithm.code.url == str(tmp_path / "code")
    assert [channel.url for channel in job.inputs] == [
        str(tmp_path / "jobs" / "data") + "/",
        "s3://bucket/b",
    ]
    assert url_of_run(job.outputs[0].url, "r1") == str(tmp_path / "jobs" / "out" / "r1")


def test_the_schema_explains_every_key() -> None:
    schema = TrainingJob.model_json_schema()

    models = [schema, *schema["$defs"].values()]
    fields = [
        (model["title"], name, field)
        for model in models
        for name, field in model.get("properties", {}).items()
        if "$ref" not in field
    ]
    unexplained = [(title, name) for title, name, field in fields if not field.get("description")]
    assert unexplained == []


def test_the_defaults_of_the_schema_can_be_sent_back_by_a_form() -> None:
    schema = TrainingJob.model_json_schema()
    limits = schema["$defs"]["Limits"]["properties"]
    defaults = {name: field["default"] for name, field in limits.items()}
    nested = {name: schema["properties"][name]["default"] for name in ("limits", "resources")}

    assert TrainingJob.parse(MINIMAL | {"limits": defaults}) == TrainingJob.parse(MINIMAL)
    assert TrainingJob.parse(MINIMAL | nested) == TrainingJob.parse(MINIMAL)
