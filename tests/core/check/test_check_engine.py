"""What a check says of the engine that an algorithm was written for, and of the cost."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import make_job
from trainjob.check.checking import check_job
from trainjob.check.engine import engine_problems
from trainjob.check.script import Examined
from trainjob.job import TrainingJob
from trainjob.storage.settings import StoreSettings

NOT_HERE = "MindSpore1.7"


def examined(folder: Path, engine: str | None, **changes: Any) -> Examined:
    job = make_job(folder, **changes)
    job["algorithm"]["engine"] = engine
    return engine_problems(TrainingJob.parse(job))


def command(text: str) -> dict[str, Any]:
    return {"kind": "command", "code": {"url": "code"}, "command": text}


def ids(found: Examined) -> list[tuple[str, str]]:
    return [(problem.level, problem.id) for problem in found.problems]


def test_a_framework_that_is_not_installed_is_an_error(tmp_path: Path) -> None:
    found = examined(tmp_path, NOT_HERE)

    assert ids(found) == [("error", "engine-missing")]
    assert str(found.problems[0]) == (
        "algorithm.engine: asked for the engine 'MindSpore1.7', found no mindspore in this Python; "
        "install mindspore on this machine, or run the job where it is"
    )
    assert found.not_checked == []


def test_another_version_is_a_warning(tmp_path: Path) -> None:
    found = examined(tmp_path, "PyTorch / 1.9-py3.6-cuda11.1-gpu")

    python = ".".join(map(str, sys.version_info[:3]))
    assert ids(found) == [("warning", "engine-differs")]
    assert found.problems[0].found.startswith(f"pytorch {version('torch')}, Python {python}")


@pytest.mark.parametrize("engine", [None, "pytorch", "Ascend-Powered-Engine"])
def test_an_engine_that_is_here_is_no_finding(tmp_path: Path, engine: str | None) -> None:
    found = examined(tmp_path, engine)

    assert (found.problems, found.not_checked) == ([], [])


def test_an_engine_of_another_device_is_a_warning(tmp_path: Path) -> None:
    engine = "pytorch_2.1.0-cann_7.0.1.1-py_3.9-euler_2.10.7-aarch64-snt3p"

    on_cuda = examined(tmp_path, engine, resources={"device": "cuda"})
    on_cpu = examined(tmp_path, engine)

    assert ("warning", "engine-device") in ids(on_cuda)
    assert on_cuda.problems[-1].found == "device cuda"
    assert ("warning", "engine-device") not in ids(on_cpu)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"algorithm": command("sh start.sh")},
            "`sh start.sh` may have a Python of its own",
        ),
        ({"env": {"PYTHONPATH": "/elsewhere"}}, "env says where Python looks"),
        ({"environment": {"requirements": True}}, "requirements.txt may bring it"),
    ],
)
def test_an_engine_that_may_be_there_is_not_checked(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    found = examined(tmp_path, NOT_HERE, **changes)

    assert found.problems == []
    assert found.not_checked == [f"whether the engine 'MindSpore1.7' is there: {why}"]


def test_the_engine_of_a_python_command_is_checked(tmp_path: Path) -> None:
    found = examined(tmp_path, NOT_HERE, algorithm=command("python train.py"))

    assert ids(found) == [("error", "engine-missing")]


def test_a_check_has_the_engine_and_the_cost(tmp_path: Path) -> None:
    job = make_job(tmp_path, limits={"auto_stop": "1h"})
    job["algorithm"]["engine"] = NOT_HERE
    job["resources"] = {"flavor": {"cores": 1, "memory_gib": 1, "price_per_hour": 0.5}}

    findings = check_job(TrainingJob.parse(job), StoreSettings.from_env())

    assert [problem.id for problem in findings.errors] == ["engine-missing"]
    assert findings.cost == (
        "0.50 an hour for 1 machine of 1c1g, 1.00 in 2 hours; at most 0.51 for the training, which "
        "is stopped after 1h and then has 1m to save"
    )


def test_a_check_refuses_a_budget_where_nobody_knows_the_price(tmp_path: Path) -> None:
    limits = {"auto_stop": "1h", "budget": 5}
    job = make_job(tmp_path, limits=limits, resources={"flavor": "1c1g"})

    findings = check_job(TrainingJob.parse(job), StoreSettings())

    assert [str(error) for error in findings.errors] == [
        "limits.budget: asked for at most 5.00, found the flavor 1c1g with no price; name a flavor "
        "that has one, see `python -m flows flavor list`, or remove the budget"
    ]
