"""The rules of the products, each broken, and what the ranks of each get."""

from pathlib import Path
from typing import Any

import pytest

from trainjob.algorithm import Code, ScriptAlgorithm
from trainjob.errors import JobError
from trainjob.job import TrainingJob
from trainjob.places import mounts_of
from trainjob.plan import program_of
from trainjob.profiles import PROFILES
from trainjob.source import code_problems
from trainjob.workspace import Workspace

CHANNELS: dict[str, tuple[list[str], list[str]]] = {
    "plain": (["data_url"], ["train_url"]),
    "openi-gpu": (["dataset", "ckpt_url"], ["model"]),
    "openi-npu": (["data_url", "ckpt_url"], ["train_url"]),
    "modelarts": (["data_url", "ckpt_url"], ["train_url", "logs_url"]),
    "tione": (["train", "test"], ["out"]),
}
MODELARTS = "/home/ma-user/modelarts"


def job_of(profile: str, **changes: Any) -> dict[str, Any]:
    inputs, outputs = CHANNELS[profile]
    return {
        "name": "mnist",
        "profile": profile,
        "algorithm": {"kind": "script", "code": {"url": "s3://b/net.zip"}, "boot_file": "train.py"},
        "inputs": [{"name": name, "url": f"s3://b/in/{name}/"} for name in inputs],
        "outputs": [{"name": name, "url": f"s3://b/out/{name}/"} for name in outputs],
    } | changes


def problems_in(job: dict[str, Any]) -> list[str]:
    with pytest.raises(JobError) as raised:
        TrainingJob.parse(job)
    return [str(problem) for problem in raised.value.problems]


@pytest.mark.parametrize("profile", CHANNELS)
def test_a_job_within_the_rules_of_its_product_is_taken(profile: str) -> None:
    job = TrainingJob.parse(job_of(profile, description="x" * 255))

    assert job.profile == profile


def test_code_is_limited_as_the_product_of_the_job_says(tmp_path) -> None:
    for i in range(1025):
        (tmp_path / f"{i}.py").touch()
    algorithm = ScriptAlgorithm(code=Code(url=str(tmp_path)), boot_file="0.py")

    limited = {
        name: [problem.asked for problem in problems]
        for name, profile in PROFILES.items()
        if (problems := code_problems(algorithm, None, limits=profile.code_limits))
    }

    # The limits are those of "Creating an Algorithm" of ModelArts, on which OpenI's NPU form runs.
    asked = ["code of at most 1,024 files and folders"]
    assert limited == {"modelarts": asked, "openi-npu": asked}


@pytest.mark.parametrize("profile", ["openi-gpu", "openi-npu"])
@pytest.mark.parametrize("name", ["a", "0", "a" * 36, "a_b-c", "a-"])
def test_openi_takes_names_within_its_rule(profile: str, name: str) -> None:
    assert TrainingJob.parse(job_of(profile, name=name)).name == name


@pytest.mark.parametrize("profile", ["openi-gpu", "openi-npu"])
@pytest.mark.parametrize("name", ["a" * 37, "a_", "_a", "Mnist", "mnIst"])
def test_openi_refuses_other_names(profile: str, name: str) -> None:
    [problem] = problems_in(job_of(profile, name=name))

    assert problem.startswith(
        f"name: asked for a name of profile {profile}: 1 to 36 lower-case letters, digits, _ and "
        f"-, starting with a letter or digit, not ending in _, found {name!r}"
    )
    assert problem.endswith("; rename it")


@pytest.mark.parametrize("profile", CHANNELS)
@pytest.mark.parametrize("name", ["", "mnist\n", "mn ist", "../mnist", "-mnist", "a" * 65, "数字"])
def test_no_profile_takes_a_name_that_is_none(profile: str, name: str) -> None:
    [problem] = problems_in(job_of(profile, name=name))

    assert problem.startswith("name: ")


@pytest.mark.parametrize(("length", "is_taken"), [(60, True), (61, False)])
def test_names_of_tione_have_at_most_60_characters(length: int, is_taken: bool) -> None:
    job = job_of("tione", name="A" * length)

    if is_taken:
        assert len(TrainingJob.parse(job).name) == length
    else:
        assert "1 to 60 letters" in problems_in(job)[0]


@pytest.mark.parametrize(
    ("profile", "most"), [("openi-gpu", 255), ("openi-npu", 255), ("modelarts", 256)]
)
def test_a_description_has_at_most_so_many_characters(profile: str, most: int) -> None:
    fits = TrainingJob.parse(job_of(profile, description="训" * most))

    assert len(fits.description) == most
    assert problems_in(job_of(profile, description="训" * (most + 1))) == [
        f"description: asked for at most {most} characters with profile {profile}, "
        f"found {most + 1} characters; shorten it"
    ]


@pytest.mark.parametrize(
    ("profile", "device", "known"),
    [("openi-gpu", "npu", "cpu or cuda"), ("openi-npu", "cuda", "cpu or npu")],
)
def test_a_form_is_of_its_device(profile: str, device: str, known: str) -> None:
    job = job_of(profile, resources={"device": device}, logs={"url": "s3://b/logs/"})

    assert problems_in(job) == [
        f"resources.device: asked for {device}, found profile {profile}, which is of {known}; "
        "change the device or the profile"
    ]


def test_a_channel_that_the_product_does_not_have_is_refused() -> None:
    job = job_of("openi-gpu", inputs=[{"name": "data_url", "url": "/data"}])

    assert problems_in(job) == [
        "inputs[0].name: asked for the channel 'data_url', found profile openi-gpu, whose inputs "
        "are dataset and ckpt_url; use one of these names"
    ]


def test_two_outputs_that_would_be_one_folder_are_refused() -> None:
    outputs = [{"name": "out", "url": "s3://b/1/"}, {"name": "more", "url": "s3://b/2/"}]

    assert problems_in(job_of("tione", outputs=outputs)) == [
        "outputs[1].name: asked for the channel 'more', found outputs[0], which profile tione has "
        "at /opt/ml/output, too; keep one of them"
    ]


@pytest.mark.parametrize("name", ["../etc", "a/b", "..", "data\n", "/data"])
def test_no_channel_leaves_the_folders_of_its_product(name: str) -> None:
    [problem] = problems_in(job_of("modelarts", inputs=[{"name": name, "url": "/data"}]))

    assert problem.startswith("inputs[0].name: asked for 1 to 64 letters, digits, - and _")


def test_a_url_cannot_take_the_place_of_a_folder_that_the_script_knows() -> None:
    inputs = [{"name": "dataset", "url": "s3://b/in/", "mode": "stream"}]

    assert problems_in(job_of("openi-gpu", inputs=inputs)) == [
        "inputs[0].mode: asked for stream, found profile openi-gpu, whose scripts read a folder "
        "and get no url; use mode: link or copy"
    ]


def test_a_job_cannot_set_what_its_product_sets() -> None:
    job = job_of(
        "modelarts",
        env={"VC_TASK_INDEX": "1", "MINE": "1"},
        inputs=[{"name": "ma_job_dir", "url": "/data"}],
    )

    assert problems_in(job) == [
        "env.VC_TASK_INDEX: asked for 'VC_TASK_INDEX', found a variable that profile modelarts "
        "sets for every rank; remove it",
        "inputs[0].name: asked for the channel 'ma_job_dir', found a variable that profile "
        "modelarts sets for every rank; rename the channel, or use given_as: argument",
    ]


def test_everything_that_breaks_the_rules_is_told_at_once() -> None:
    job = job_of("openi-npu", name="Mnist_", description="x" * 256, resources={"device": "cuda"})
    job["outputs"][0]["name"] = "model"

    fields = [problem.partition(":")[0] for problem in problems_in(job)]

    assert fields == ["name", "description", "resources.device", "outputs[0].name"]


@pytest.mark.parametrize(
    ("profile", "arguments"),
    [
        ("openi-gpu", ["--ckpt_url", "/pretrainmodel"]),
        (
            "openi-npu",
            [
                *("--data_url", f"{MODELARTS}/inputs/data_url_0"),
                *("--ckpt_url", f"{MODELARTS}/inputs/ckpt_url_1"),
                *("--train_url", "/cache/output"),
            ],
        ),
        (
            "modelarts",
            [
                *("--data_url", f"{MODELARTS}/inputs/data_url_0"),
                *("--ckpt_url", f"{MODELARTS}/inputs/ckpt_url_1"),
                *("--train_url", f"{MODELARTS}/outputs/train_url_0"),
                *("--logs_url", f"{MODELARTS}/outputs/logs_url_1"),
            ],
        ),
        ("tione", []),
    ],
)
def test_a_script_gets_the_arguments_of_its_product(profile: str, arguments: list[str]) -> None:
    program = program_of(TrainingJob.parse(job_of(profile)), Workspace(Path("/runs/1")))

    assert list(program.argv) == ["train.py", *arguments]


def test_every_channel_is_in_the_environment_too() -> None:
    program = program_of(TrainingJob.parse(job_of("tione")), Workspace(Path("/runs/1")))

    assert program.env["TRAIN"] == "/opt/ml/input/data/train"
    assert program.env["OUT"] == "/opt/ml/output"


def test_modelarts_tells_the_script_where_it_is() -> None:
    resources = {"device": "npu", "processes_per_node": 8}
    job = job_of(
        "modelarts", resources=resources, launcher="torchrun", logs={"url": "s3://b/logs/"}
    )

    env = program_of(TrainingJob.parse(job), Workspace(Path("/runs/1"))).env

    assert env["MA_NUM_HOSTS"] == env["VC_WORKER_NUM"] == "1"
    assert env["VC_TASK_INDEX"] == "0"
    assert env["VC_WORKER_HOSTS"] == "127.0.0.1"
    assert env["MA_NUM_GPUS"] == "8"
    assert env["MA_JOB_DIR"] == f"{MODELARTS}/user-job-dir"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://b/net.zip", "net"),
        ("s3://b/code/net/", "net"),
        ("/home/me/my net", "my_net"),
        ("git+https://host/group/net.git", "net"),
        ("s3://bucket", "bucket"),
    ],
)
def test_the_code_of_modelarts_is_below_a_folder_of_its_name(url: str, name: str) -> None:
    job = job_of("modelarts")
    job["algorithm"]["code"]["url"] = url

    mounts = mounts_of(TrainingJob.parse(job), Workspace(Path("/runs/1")))

    assert mounts[0].target == f"{MODELARTS}/user-job-dir/{name}"


def test_what_runs_share_is_mounted_to_read_only() -> None:
    job = job_of("openi-gpu")
    job["inputs"][0]["mode"] = "copy"

    mounts = mounts_of(TrainingJob.parse(job), Workspace(Path("/runs/1")))

    assert {mount.target: mount.is_read_only for mount in mounts} == {
        "/code": False,
        "/dataset": False,
        "/pretrainmodel": True,
        "/model": False,
    }


def test_a_plain_job_sees_the_machine_as_it_is() -> None:
    assert mounts_of(TrainingJob.parse(job_of("plain")), Workspace(Path("/runs/1"))) == ()


def test_modelarts_takes_the_characters_of_its_form_in_values() -> None:
    rule = {"name": "where", "type": "String", "default": "a/b", "choices": ["a/b", "a b"]}
    script = {"code": {"url": "s3://b/net.zip"}, "boot_file": "train.py"}
    values = {"good": "adam-2, b_1.5 x", "layers": ["a", "b:c"], "lr": 0.1}
    given = {"hyperparameters": values, "algorithm": script}
    ruled = {"algorithm": script | {"hyperparameters": [rule]}}

    asked = "asked for letters, digits, -, _, commas, periods and spaces with profile modelarts"
    do = "change it, or give it in env or as a channel"
    assert problems_in(job_of("modelarts", **given)) == [
        f"hyperparameters.layers: {asked}, found 'b:c'; {do}"
    ]
    assert problems_in(job_of("modelarts", **ruled)) == [
        f"algorithm.hyperparameters[0].{key}: {asked}, found 'a/b'; {do}"
        for key in ("default", "choices")
    ]
    assert TrainingJob.parse(job_of("openi-npu", **given)).profile == "openi-npu"
