"""What a check shows of the inputs of a job."""

from typing import Any

from flows.preview import preview, preview_text
from trainjob.job import TrainingJob

ALGORITHM = {"code": {"url": "/code"}, "boot_file": "train.py"}
PIN = "sha256:" + "0123456789abcdef" * 4


def plan_of(**channel: Any) -> dict[str, Any]:
    inputs = [{"name": "data_url", "url": "s3://b/data/"} | channel]
    return preview(TrainingJob.parse({"name": "x", "algorithm": ALGORITHM, "inputs": inputs}))


def steps_of(**channel: Any) -> list[str]:
    steps: list[str] = plan_of(**channel)["inputs"][0]["how"]
    return steps


def test_the_check_says_what_happens_to_each_channel() -> None:
    assert steps_of() == ["to read only, shared with other runs", "one archive is unpacked"]
    assert steps_of(mode="copy", unpack="never") == [
        "a copy of its own, which the script may write to",
        "an archive stays as it is",
    ]
    assert steps_of(unpack="always", archive_names="gbk", expect=PIN)[1:] == [
        "one archive is unpacked, however large it becomes, its names read as gbk",
        f"refused unless it is {PIN}",
    ]


def test_the_check_shows_a_streamed_channel_without_a_folder() -> None:
    plan = plan_of(mode="stream")

    assert plan["inputs"][0]["folder"] is None
    lines = preview_text(plan).splitlines()
    index = lines.index("  input   data_url: s3://b/data/")
    assert lines[index + 1] == (
        "          -> not copied: the script gets the url, and the credentials of the store as "
        "AWS_* in its environment"
    )


def test_credentials_are_promised_for_s3_only() -> None:
    assert steps_of(mode="stream", url="gs://b/data/") == ["not copied: the script gets the url"]


def plan_with_rules(hyperparameters: dict[str, Any], **algorithm: Any) -> dict[str, Any]:
    rules = [
        {"name": "epochs", "type": "integer", "default": 3},
        {"name": "optimizer", "type": "string", "default": "adam"},
        {"name": "lr", "type": "float", "default": 0.1},
        {"name": "amp", "type": "boolean", "default": False},
        {"name": "layers", "type": "integer", "is_list": True, "default": [64, 32]},
        {"name": "seed", "type": "integer", "default": 42, "restricted": True},
        {"name": "note", "type": "string"},
    ]
    job = {"algorithm": ALGORITHM | {"hyperparameters": rules} | algorithm}
    given = {"hyperparameters": hyperparameters}
    return preview(TrainingJob.parse({"name": "x"} | job | given))


def test_the_check_shows_the_command_line_with_the_defaults() -> None:
    given = {"epochs": "5", "lr": None}
    style = {"booleans": "pair", "lists": "repeat", "equals": True}

    assert plan_with_rules(given)["command"] == (
        "python train.py --epochs 5 --optimizer adam --amp false --layers 64 32 --seed 42"
    )
    assert plan_with_rules(given, arguments=style)["command"] == (
        "python train.py --epochs=5 --optimizer=adam --no-amp --layers=64 --layers=32 --seed=42"
    )


def test_the_check_says_who_gives_each_hyperparameter() -> None:
    plan = plan_with_rules({"epochs": "5", "lr": None})

    assert plan["hyperparameters"][:2] == [
        {"name": "epochs", "value": 5, "origin": "of the job"},
        {"name": "optimizer", "value": "adam", "origin": "default of the algorithm"},
    ]
    lines = preview_text(plan).splitlines()
    index = lines.index("  values  epochs = 5: of the job")
    assert lines[index + 1 : index + 7] == [
        '          optimizer = "adam": default of the algorithm',
        "          lr: removed by the job",
        "          amp = false: default of the algorithm",
        "          layers = [64, 32]: default of the algorithm",
        "          seed = 42: fixed by the algorithm",
        "          note: not given",
    ]


def test_the_check_repeats_no_value_where_the_job_gives_all() -> None:
    job = {"name": "x", "algorithm": ALGORITHM, "hyperparameters": {"epochs": 5}}

    text = preview_text(preview(TrainingJob.parse(job)))

    assert "python train.py --epochs 5" in text
    assert "values" not in text


def test_the_check_shows_the_folders_of_the_profile() -> None:
    channels = {"inputs": [{"name": "dataset", "url": "s3://b/data/"}]}
    plan = preview(
        TrainingJob.parse({"name": "x", "profile": "openi-gpu", "algorithm": ALGORITHM, **channels})
    )

    shown = {path["path"]: path["is_read_only"] for path in plan["paths"]}
    assert shown == {"/code": False, "/dataset": True}
    lines = preview_text(plan).splitlines()
    index = lines.index("  path    /dataset, to read only")
    assert lines[index + 1].endswith("/inputs/dataset")
    assert plan["command"] == "python train.py"


def test_the_check_says_what_ranks_of_a_flavor_are_held_to() -> None:
    resources = {"flavor": "1c3g"}
    plan = preview(TrainingJob.parse({"name": "x", "algorithm": ALGORITHM, "resources": resources}))
    without = plan_of()

    assert plan["limits_of_ranks"].startswith("1 core")
    assert "; 3 GiB of memory " in plan["limits_of_ranks"]
    assert f"  ranks   {plan['limits_of_ranks']}" in preview_text(plan).splitlines()
    assert without["limits_of_ranks"] is None
    assert "  ranks " not in preview_text(without)


def layout_of(**resources: Any) -> tuple[list[dict[str, Any]], list[str]]:
    job = {"name": "x", "algorithm": ALGORITHM, "launcher": "torchrun", "resources": resources}
    plan = preview(TrainingJob.parse(job))
    lines = preview_text(plan).splitlines()
    return plan["layout"], [line for line in lines if line.startswith("    rank ")]


def test_the_check_shows_where_each_rank_computes_and_logs() -> None:
    on_cards, lines = layout_of(device="cuda", processes_per_node=2)
    on_cores, _ = layout_of(device="cpu", processes_per_node=2)

    assert [(row["rank"], row["local_rank"], row["device"]) for row in on_cards] == [
        (0, 0, "cuda:0"),
        (1, 1, "cuda:1"),
    ]
    assert [row["device"] for row in on_cores] == ["cpu", "cpu"]
    assert lines[1] == f"    rank 1: node 0, local rank 1, cuda:1 -> {on_cards[1]['log']}"
    assert on_cards[1]["log"].endswith("/rank-1.log")


def test_of_many_ranks_the_check_shows_some() -> None:
    layout, lines = layout_of(device="cpu", processes_per_node=64)

    assert len(layout) == 64
    assert [line.split(":")[0].strip() for line in lines] == [
        *(f"rank {number}" for number in range(6)),
        "rank 63",
    ]
