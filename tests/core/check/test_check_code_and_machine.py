"""What a check finds in code, machine and limits beside the arguments of the script."""

import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from tests.core.check.test_check_arguments import PARSER, USES, check
from tests.jobs import make_job
from trainjob.check import machine
from trainjob.check.checking import check_job
from trainjob.inputs import stage_channels
from trainjob.job import TrainingJob
from trainjob.workspace import Workspace

WORKS = PARSER + "args = parser.parse_args()\n" + USES


def ids(folder: Path, script: str = WORKS, **changes: Any) -> list[tuple[str, str]]:
    problems = check(folder, script, **({"hyperparameters": {}} | changes)).problems
    return [(problem.level, problem.id) for problem in problems]


def test_an_import_that_is_not_installed_is_an_error(tmp_path: Path) -> None:
    script = "import os, no_such_package.part\n" + WORKS

    [problem] = check(tmp_path, script, hyperparameters={}).problems

    assert str(problem) == (
        "algorithm.code: asked for the module 'no_such_package' (train.py:1), found none in the "
        f"code and none installed in {sys.prefix!r}; install the package that has it on this "
        "machine"
    )
    assert (problem.level, problem.id) == ("error", "script-import-missing")


@pytest.mark.parametrize(
    "line",
    [
        "try:\n    import no_such_package\nexcept ImportError:\n    pass\n",
        "import contextlib\nwith contextlib.suppress(ImportError):\n    import no_such_package\n",
        "if False:\n    import no_such_package\n",
        "def test():\n    import no_such_package\n",
        "import sys\nsys.path.append('elsewhere')\nimport no_such_package\n",
        "from __future__ import annotations\nimport beside\n",
        "import folder.inner\n",
    ],
)
def test_an_import_that_may_be_there_is_no_finding(tmp_path: Path, line: str) -> None:
    make_job(tmp_path)
    (tmp_path / "code" / "beside.py").touch()
    (tmp_path / "code" / "folder").mkdir()

    assert ids(tmp_path, line + WORKS) == []


def test_nothing_of_the_code_is_executed(tmp_path: Path) -> None:
    make_job(tmp_path)
    package = tmp_path / "code" / "package"
    package.mkdir()
    mark = tmp_path / "executed"
    touch = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    (package / "__init__.py").write_text(touch)

    check(tmp_path, "import package.part\n" + touch + WORKS)

    assert not mark.exists()


def test_a_script_that_is_no_python_is_an_error(tmp_path: Path) -> None:
    [problem] = check(tmp_path, "print 'hello'\n").problems

    assert problem.id == "script-syntax"
    assert "no Python that this Python reads in line 1" in problem.found


def test_requirements_that_are_not_met_are_warnings(tmp_path: Path) -> None:
    make_job(tmp_path)
    lines = (
        "# what we need\npyyaml>=6  # installed\npydantic<1\n--index-url https://example.org\n"
        "no-such-package==1.0 \\\n    --hash=sha256:00\nold ; python_version < '3'\n-r more.txt\n"
        "git+https://example.org/x.git\n"
    )
    (tmp_path / "code" / "requirements.txt").write_text(lines)
    (tmp_path / "code" / "more.txt").write_text("another-missing-one\n-r requirements.txt\n")

    findings = check(tmp_path, WORKS, hyperparameters={})

    assert {(p.level, p.id) for p in findings.problems} == {("warning", "requirement-not-met")}
    assert [p.asked for p in findings.problems] == [
        "pydantic<1 (requirements.txt:3)",
        "no-such-package==1.0 (requirements.txt:5)",
        "another-missing-one (more.txt:1)",
    ]
    assert any("git+https://example.org/x.git" in line for line in findings.not_checked)


def test_a_channel_that_nothing_reads_is_a_warning(tmp_path: Path) -> None:
    declared_only = PARSER + "args = parser.parse_args()\nprint(args.data_url)\n"
    by_environment = "import os\nprint(os.environ['DATA_URL'], os.environ['TRAIN_URL'])\n"

    assert ids(tmp_path, declared_only) == [("warning", "script-channel-not-read")]
    assert ids(tmp_path, "print('hello')\n") == [("warning", "script-channel-not-read")] * 2
    assert ids(tmp_path, by_environment) == []
    assert ids(tmp_path, "import os\nprint(os.environ['TRAINJOB_PARAMS'])\n") == []


def test_local_rank_as_an_argument_is_a_warning_with_more_than_one_rank(tmp_path: Path) -> None:
    script = PARSER + "parser.add_argument('--local_rank', type=int, default=-1)\n"
    script += "args = parser.parse_args()\n" + USES
    two: dict[str, Any] = {"launcher": "torchrun", "resources": {"processes_per_node": 2}}

    assert ids(tmp_path, script) == []
    assert ids(tmp_path, script, **two) == [("warning", "script-local-rank")]
    assert ids(tmp_path, "import os\nos.environ.get('LOCAL_RANK')\n" + script, **two) == []


@pytest.mark.parametrize(
    ("profile", "folders"),
    [
        ("openi-npu", ("data_url_0", "/cache/output/model.pt")),
        ("modelarts", ("/home/ma-user/modelarts/inputs/data_url_0", "outputs/train_url_0")),
    ],
)
def test_a_script_that_knows_the_folders_of_its_product_reads_its_channels(
    tmp_path: Path, profile: str, folders: tuple[str, str]
) -> None:
    script = f"print(open({folders[0]!r}), open({folders[1]!r}))\n"
    job = {"name": "copy", "profile": profile}

    assert ("warning", "script-channel-not-read") not in ids(tmp_path, script, **job)
    assert (
        ids(tmp_path, "print('/cache')\n", **job).count(("warning", "script-channel-not-read")) == 2
    )


@pytest.mark.parametrize(
    "use",
    [
        "model.cuda()",
        "model.to('cuda:0')",
        "torch.device('cuda')",
        "device = 'cuda'; model.to(device)",
        "device: str = 'cuda:1'; torch.load('x', map_location=device)",
        "device = 'cuda'; torch.device(device)",
    ],
)
def test_cuda_in_a_script_for_cpu_is_a_warning(tmp_path: Path, use: str) -> None:
    script = f"import torch\ndef train(model):\n    {use}\n" + WORKS
    asks = f"import torch\nif torch.cuda.is_available():\n    {use}\n" + WORKS

    assert ids(tmp_path, script) == [("warning", "script-fixed-device")]
    assert ids(tmp_path, asks) == []


@pytest.mark.parametrize(
    "lines",
    [
        "device = 'cuda'\ndevice = 'cpu'\nmodel.to(device)",
        "device = 'cuda' if fast else 'cpu'\nmodel.to(device)",
        "device = 'cuda'\nfor device in ['cpu']:\n    model.to(device)",
        "device = 'cuda'\ndef f(device):\n    model.to(device)",
        "device = 'cuda'\nimport device\nmodel.to(device)",
        "device = 'cuda'\nprint(device)",
    ],
)
def test_a_device_that_may_be_another_is_no_finding(tmp_path: Path, lines: str) -> None:
    assert ids(tmp_path, f"model = fast = None\n{lines}\n{WORKS}") in (
        [],
        [("error", "script-import-missing")],
    )


def test_limits_that_can_never_apply_are_warnings(tmp_path: Path) -> None:
    limits = {"auto_stop": "10s", "grace": "10s", "stall": "1m"}

    problems = check(tmp_path, WORKS, hyperparameters={}, limits=limits).problems

    assert [(p.level, p.field) for p in problems] == [
        ("warning", "limits.grace"),
        ("warning", "limits.stall"),
    ]


def test_more_ranks_than_cores_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "num_cores", lambda: 2)
    asked: dict[str, Any] = {"launcher": "torchrun", "resources": {"processes_per_node": 3}}

    assert ids(tmp_path, **asked) == [("warning", "machine-cores")]
    asked["resources"] = {"processes_per_node": 2, "flavor": "1c1g"}
    assert ids(tmp_path, **asked) == [("warning", "machine-cores")]
    asked["resources"] = {"processes_per_node": 2}
    assert ids(tmp_path, **asked) == []


def test_little_shared_memory_is_told_to_who_has_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64 * 2**20, 0, 0))

    assert ids(tmp_path, WORKS + "dict(num_workers=4)\n") == [("warning", "machine-shared-memory")]
    assert ids(tmp_path) == []


def test_little_shared_memory_is_told_to_ranks_on_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_job(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64 * 2**20, 0, 0))

    def asked(device: str) -> list[str]:
        resources = {"device": device, "processes_per_node": 2}
        job = make_job(tmp_path, WORKS, launcher="torchrun", resources=resources)
        found = machine.shared_memory_problems(TrainingJob.parse(job), tmp_path / "code")
        return [problem.asked for problem in found]

    assert asked("cuda") == ["1 GiB of /dev/shm, for 2 ranks on cuda"]
    assert asked("cpu") == []


@pytest.mark.parametrize(("total", "level"), [(1, "error"), (10**15, "warning")])
def test_inputs_that_do_not_fit_the_disk_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int, level: str
) -> None:
    usage = namedtuple("usage", "total used free")
    data = make_job(tmp_path)["inputs"][0] | {"mode": "copy"}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(total, total, 0))

    assert ids(tmp_path, inputs=[data]) == [(level, "inputs-space")]
    assert ids(tmp_path) == []  # used in place


@pytest.mark.parametrize(("disk_gib", "expected"), [(2, [("error", "flavor-space")]), (4, [])])
def test_inputs_that_do_not_fit_the_disk_of_the_flavor_are_told(
    tmp_path: Path, disk_gib: int, expected: list[tuple[str, str]]
) -> None:
    data = make_job(tmp_path)["inputs"][0] | {"mode": "copy"}
    with (tmp_path / "data" / "sparse").open("wb") as file:
        file.truncate(3 * 2**30)
    flavor = {"cores": 1, "memory_gib": 1, "disk_gib": disk_gib}

    assert ids(tmp_path, inputs=[data], resources={"flavor": flavor}) == expected


def test_a_job_with_ten_mistakes_lists_ten(tmp_path: Path) -> None:
    script = (
        "import argparse, no_such_package\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('--data_url')\n"
        "parser.add_argument('--train_url')\n"
        "parser.add_argument('--logs_url')\n"
        "parser.add_argument('--lr', type=float)\n"
        "parser.add_argument('--mode', choices=['a', 'b'])\n"
        "parser.add_argument('--seed', required=True)\n"
        "args = parser.parse_args()\n"
        "print(args.data_url, args.train_url, args.logs_url, args.batch_size)\n"
    )
    make_job(tmp_path)
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    code_file = tmp_path / "code" / "train.py"
    outputs = [
        {"name": "train_url", "url": str(full)},
        {"name": "logs_url", "url": str(code_file / "below")},
    ]

    errors = check(
        tmp_path,
        script,
        inputs=[{"name": "data_url", "url": str(tmp_path / "absent")}],
        outputs=outputs,
        hyperparameters={"lr": "fast", "mode": "c", "momentum": 0.9},
        resources={"device": "cuda"},
        env={"CUDA_VISIBLE_DEVICES": ""},
    ).errors

    assert sorted(problem.id for problem in errors) == [
        "inputs-url",
        "outputs-url",
        "outputs-url",
        "resources-device",
        "script-import-missing",
        "script-refuses-argument",
        "script-refuses-argument",
        "script-required-argument",
        "script-undeclared-argument",
        "script-undeclared-attribute",
    ]
    assert len({str(problem) for problem in errors}) == len(errors) == 10


@pytest.mark.parametrize("name", ["", "value.txt"], ids=["a folder", "one file"])
def test_of_an_object_store_only_what_is_not_in_the_cache_needs_space(
    tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bucket = s3.new_bucket()
    s3.put(bucket, "data/value.txt", b"21")
    usage = namedtuple("usage", "total used free")
    channel = {"name": "data_url", "url": f"s3://{bucket}/data/{name}"}
    job = TrainingJob.parse(make_job(tmp_path, WORKS, hyperparameters={}, inputs=[channel]))

    def levels() -> list[str]:
        with monkeypatch.context() as full:
            full.setattr(shutil, "disk_usage", lambda path: usage(10**15, 10**15, 0))
            return [problem.level for problem in check_job(job, s3.settings).problems]

    before = levels()
    stage_channels(job, Workspace.of_run("one"), s3.settings)
    after = levels()

    assert before == ["warning"]
    assert after == []
