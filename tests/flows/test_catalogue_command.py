"""``python -m flows flavor | engine list``, as a person types them, and the cost in a check."""

import json
from pathlib import Path

import pytest

from flows.__main__ import main
from flows.check_text import findings_markdown
from tests.jobs import write_job
from trainjob.check.checking import Findings


@pytest.fixture
def flavors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path))
    file = tmp_path / "flavors.yaml"
    file.write_text(
        "1c1g: {price_per_hour: 0.4}\n"
        "lab-v100: {size: 8C40G V100*1, disk_gib: 500, price_per_hour: 12.6, pool: lab}\n"
    )
    return file


def test_flavors_are_listed_with_size_and_price(
    flavors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["flavor", "list"]) == 0

    assert capsys.readouterr().out.splitlines() == [
        "FLAVOR    SIZE          DEVICE  DISK     PRICE PER HOUR  POOL",
        "1c1g      1c1g          -       -        0.4             -",
        "lab-v100  8c40g V100*1  cuda    500 GiB  12.6            lab",
        f"2 flavors in {flavors}",
    ]


def names_of(capsys: pytest.CaptureFixture[str], *asked: str) -> list[str]:
    assert main(["flavor", "list", *asked, "--json"]) == 0
    return [
        flavor["name"] or flavor["size"]
        for flavor in json.loads(capsys.readouterr().out)["flavors"]
    ]


def test_flavors_are_listed_by_device(flavors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert names_of(capsys, "--device", "cpu") == ["1c1g"]
    assert names_of(capsys, "--device", "cuda") == ["lab-v100"]
    assert main(["flavor", "list", "--device", "npu"]) == 0
    assert capsys.readouterr().out == f"0 flavors of 2 in {flavors}\n"


@pytest.mark.parametrize(
    ("constraints", "expected"),
    [
        ({}, ["1c1g", "lab-v100", "32c256g A100*4"]),
        ({"devices": ["cpu", "npu"]}, ["1c1g"]),
        ({"devices": ["cuda"]}, ["lab-v100", "32c256g A100*4"]),
        ({"multi_card": False}, ["1c1g", "lab-v100"]),
    ],
)
def test_flavors_are_listed_for_an_algorithm(
    flavors: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    constraints: dict[str, object],
    expected: list[str],
) -> None:
    with flavors.open("a") as file:
        file.write("32c256g A100*4: {price_per_hour: 40}\n")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("print(1)\n")
    algorithm = {"code": {"url": "code"}, "boot_file": "train.py", "constraints": constraints}
    (tmp_path / "algorithm.yaml").write_text(json.dumps({"algorithm": algorithm}))
    assert main(["algorithm", "register", "mine", str(tmp_path / "algorithm.yaml")]) == 0
    capsys.readouterr()

    assert names_of(capsys, "--algorithm", "mine") == expected


def test_flavors_of_an_unknown_algorithm_are_refused(
    flavors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["flavor", "list", "--algorithm", "mine"]) == 1

    assert "mine" in capsys.readouterr().err


def test_a_platform_without_flavors_says_where_they_would_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["flavor", "list"]) == 0

    assert capsys.readouterr().out == f"0 flavors in {tmp_path}/registry/flavors.yaml\n"


def test_flavors_are_listed_for_programs(flavors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flavor", "list", "--json"]) == 0

    [small, large] = json.loads(capsys.readouterr().out)["flavors"]
    assert (small["name"], small["size"], small["price_per_hour"]) == (None, "1c1g", 0.4)
    assert (large["name"], large["size"], large["device"]) == ("lab-v100", "8c40g V100*1", "cuda")


def test_mistakes_in_the_flavors_are_told_beside_the_others(
    flavors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flavors.write_text("a: {size: big}\n2c4g:\nb: {size: bigger}\n")

    assert main(["flavor", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["flavor", "list", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)

    assert lines[1].startswith("2c4g ")
    assert [line.partition(": asked")[0] for line in lines[2:4]] == [
        "broken: a.size",
        "broken: b.size",
    ]
    assert lines[4] == f"1 flavor in {flavors}"
    assert [flavor["size"] for flavor in data["flavors"]] == ["2c4g"]
    assert [text.partition(":")[0] for text in data["broken"]] == ["a.size", "b.size"]


def test_old_engines_are_shown_to_who_asks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", "list"]) == 0
    usual = capsys.readouterr().out
    assert main(["engine", "list", "--old"]) == 0
    everything = capsys.readouterr().out

    assert "1.9-py3.6-cuda11.1-gpu" in usual
    assert "MindSpore1.8.1" in usual
    assert "TF-1.4.0-python2.7" not in usual
    assert usual.splitlines()[-1] == "19 engines; 2 more with --old"
    assert "TF-1.4.0-python2.7" in everything
    assert everything.splitlines()[-1] == "21 engines"


def test_engines_are_listed_with_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", "list", "--json"]) == 0

    engines = {e["name"]: e for e in json.loads(capsys.readouterr().out)["engines"]}
    assert engines["1.9-py3.6-cuda11.1-gpu"]["here"].startswith("pytorch ")
    assert engines["MindSpore1.7"]["here"] == "not installed"
    assert engines["Ascend-Powered-Engine"]["here"] is None


def test_a_check_says_what_a_run_costs_at_most(
    flavors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_job(tmp_path, resources={"flavor": "1c1g"}, limits={"auto_stop": "30m"})
    line = (
        "0.40 an hour for 1 machine of 1c1g, 0.80 in 2 hours; at most 0.21 for the training, which "
        "is stopped after 30m and then has 1m to save"
    )

    assert main(["check", str(file)]) == 0
    text = capsys.readouterr().out
    assert main(["check", "--json", str(file)]) == 0
    data = json.loads(capsys.readouterr().out)

    assert f"\n  cost: {line}\n" in text
    assert data["cost"] == line


def test_the_page_of_a_check_has_the_cost() -> None:
    assert "\nCost: 1.00 an hour.\n" in findings_markdown(Findings((), (), "1.00 an hour"))
    assert "Cost" not in findings_markdown(Findings((), ()))
