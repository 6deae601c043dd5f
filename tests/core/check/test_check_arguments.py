"""Arguments that a job gives and its script does not take, found before the script runs.

Where a script is expected to be refused, it is really run: what the check says is what happens.
"""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import make_job
from trainjob.check.checking import Findings, check_job
from trainjob.job import TrainingJob
from trainjob.storage.settings import StoreSettings

PARSER = """\
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--data_url", required=True)
parser.add_argument("--train_url")
"""
USES = "print(args.data_url, args.train_url)\n"


def check(folder: Path, script: str, **changes: Any) -> Findings:
    job = TrainingJob.parse(make_job(folder, script, **changes))
    return check_job(job, StoreSettings.from_env())


def found(folder: Path, script: str, **hyperparameters: Any) -> list[tuple[str, str]]:
    problems = check(folder, script, hyperparameters=hyperparameters).problems
    return [(problem.level, problem.id) for problem in problems]


def run(folder: Path, *words: str) -> int:
    command = [sys.executable, str(folder / "code" / "train.py"), "--data_url", "d"]
    return subprocess.run(
        [*command, "--train_url", "t", *words], capture_output=True, check=False
    ).returncode


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "undeclared": ("", {"batch_size": 128}, "script-undeclared-argument"),
    "not of the type": ("--lr type=int", {"lr": 0.1}, "script-refuses-argument"),
    "not among the choices": ("--mode choices=['a','b']", {"mode": "c"}, "script-refuses-argument"),
    "a value for a flag": ("--fast action='store_true'", {"fast": True}, "script-refuses-argument"),
    "a list for one value": ("--size type=int", {"size": [1, 2]}, "script-refuses-argument"),
    "too few values": ("--size nargs=3", {"size": [1, 2]}, "script-refuses-argument"),
    "an ambiguous prefix": (
        "--epochs;--epoch_size",
        {"epoch": 1},
        "script-refuses-argument",
    ),
    "a dash for an underscore": ("--batch-size", {"batch_size": 1}, "script-undeclared-argument"),
}


def declaring(text: str) -> str:
    lines = []
    for declaration in filter(None, text.split(";")):
        flag, _, settings = declaration.partition(" ")
        lines.append(f"parser.add_argument({flag!r}{', ' if settings else ''}{settings})\n")
    return PARSER + "".join(lines) + "args = parser.parse_args()\n" + USES


@pytest.mark.parametrize("name", REFUSED)
def test_what_argparse_would_refuse_is_an_error(tmp_path: Path, name: str) -> None:
    declared, hyperparameters, rule = REFUSED[name]
    script = declaring(declared)

    problems = check(tmp_path, script, hyperparameters=hyperparameters).problems

    assert [(problem.level, problem.id) for problem in problems] == [("error", rule)]
    [(key, value)] = hyperparameters.items()
    assert problems[0].field == f"hyperparameters.{key}"
    words = [str(item).lower() for item in (value if isinstance(value, list) else [value])]
    assert run(tmp_path, f"--{key}", *words) == 2


def test_a_near_name_is_suggested(tmp_path: Path) -> None:
    [problem] = check(
        tmp_path, declaring("--batch-size"), hyperparameters={"batch_size": 1}
    ).problems

    assert str(problem) == (
        "hyperparameters.batch_size: asked for '--batch_size 1', found no such argument in the "
        "script, which refuses what it does not declare; did you mean '--batch-size'?"
    )


ACCEPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "declared": ("--lr type=float", {"lr": 1}),
    "a unique prefix": ("--learning_rate type=float", {"learning": 0.5}),
    "an optional value": ("--fast nargs='?'", {"fast": True}),
    "one of the choices": ("--size type=int choices=[1,2]".replace(" ch", ", ch"), {"size": 2}),
    "a negative number": ("--shift type=float", {"shift": -1e-5}),
    "a list": ("--sizes nargs='+', type=int", {"sizes": [1, 2]}),
    "a function as its type": ("--n type=lambda text: int(text, 16)", {"n": "ff"}),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_argparse_takes_is_no_finding(tmp_path: Path, name: str) -> None:
    declared, hyperparameters = ACCEPTED[name]

    assert found(tmp_path, declaring(declared), **hyperparameters) == []


def test_a_required_argument_that_the_job_does_not_give_is_an_error(tmp_path: Path) -> None:
    script = declaring("--epochs required=True;images")

    problems = check(tmp_path, script, hyperparameters={}).problems

    assert [problem.id for problem in problems] == ["script-required-argument"] * 2
    assert "--epochs by the script (train.py:5)" in problems[0].asked
    assert run(tmp_path) == 2


def test_the_sample_whose_code_reads_an_undeclared_argument_is_found(tmp_path: Path) -> None:
    """The sample of OpenI's page on training, as it is written there."""
    script = """\
import argparse

# 设置
parser = argparse.ArgumentParser(description='PyTorch MNIST Example')
parser.add_argument('--epoch_size', type=int, default=1, help='how much epoch to train')

# main中加载参数
args, unknown = parser.parse_known_args()
batch_size = args.batch_size
"""

    findings = check(tmp_path, script, inputs=[], outputs=[], hyperparameters={"epoch_size": 2})

    assert [str(problem) for problem in findings.errors] == [
        "algorithm.code: asked for args.batch_size in train.py:9, found no --batch_size among the "
        "arguments that the script declares; declare it with add_argument('--batch_size', ...), "
        "or correct the name"
    ]
    assert run(tmp_path) == 1


KNOWN = PARSER + "args, unknown = parser.parse_known_args()\n" + USES


def test_an_argument_that_is_ignored_is_a_warning(tmp_path: Path) -> None:
    assert found(tmp_path, KNOWN, momentum=0.9) == [("warning", "script-ignores-argument")]
    assert run(tmp_path, "--momentum", "0.9") == 0


def test_type_bool_makes_false_true(tmp_path: Path) -> None:
    script = declaring("--fast type=bool")

    assert found(tmp_path, script, fast=True) == []
    assert found(tmp_path, script, fast=False) == [("warning", "script-type-bool")]


def test_an_attribute_behind_a_condition_is_a_warning(tmp_path: Path) -> None:
    script = PARSER + "args = parser.parse_args()\n" + USES + "if args.train_url == 'x':\n    "

    assert found(tmp_path, script + "print(args.lr)\n") == [
        ("warning", "script-undeclared-attribute")
    ]


def test_an_attribute_is_followed_through_functions(tmp_path: Path) -> None:
    script = (
        "import argparse\n"
        "def arguments():\n"
        "    parser = argparse.ArgumentParser()\n"
        "    for_data = parser.add_argument_group('data')\n"
        "    for_data.add_argument('--data_url')\n"
        "    for_data.add_argument('--train_url')\n"
        "    return parser.parse_args()\n"
        "def main():\n"
        "    args = arguments()\n"
        "    train(args)\n"
        "def train(options):\n"
        "    print(options.data_url, options.train_url, options.lr)\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
    )

    assert found(tmp_path, script) == [("error", "script-undeclared-attribute")]
    assert run(tmp_path) == 1


def test_a_module_of_the_code_declares_too(tmp_path: Path) -> None:
    script = (
        "import argparse\nfrom tools.options import add_arguments\n"
        "parser = argparse.ArgumentParser()\nadd_arguments(parser)\n"
        "args = parser.parse_args()\nprint(args.data_url, args.train_url)\n"
    )
    make_job(tmp_path)
    tools = tmp_path / "code" / "tools"
    tools.mkdir()
    (tools / "options.py").write_text(
        "def add_arguments(parser):\n"
        "    for name in ():\n        pass\n"
        "    parser.add_argument('--data_url')\n    parser.add_argument('--train_url')\n"
        "    parser.add_argument('--lr', type=float)\n"
    )

    assert found(tmp_path, script, lr=0.1) == []
    assert found(tmp_path, script, momentum=0.1) == [("error", "script-undeclared-argument")]


UNSURE = {
    "subcommands": "parser.add_subparsers().add_parser('train').add_argument('--lr')\n",
    "a loop": "for name in ('lr', 'seed'):\n    parser.add_argument('--' + name)\n",
    "a library": "import torch.optim\ntorch.optim.add_arguments_to(parser)\n",
    "settings from elsewhere": "parser.add_argument(*__import__('json').loads('[\"--lr\"]'))\n",
    "argv changed": "import sys\nsys.argv = sys.argv[:5]\n",
    "another parser": "other = argparse.ArgumentParser()\nother.add_argument('--lr')\n",
}


@pytest.mark.parametrize("name", UNSURE)
def test_of_a_parser_that_is_not_understood_nothing_is_said(tmp_path: Path, name: str) -> None:
    script = PARSER + UNSURE[name] + "args = parser.parse_args()\n" + USES + "print(args.lr)\n"

    findings = check(tmp_path, script, hyperparameters={"lr": 1})

    assert findings.problems == ()
    assert any("whether the script declares" in line for line in findings.not_checked)


WORKING = {
    "set by hand": "args = parser.parse_args()\nargs.lr = 1\nprint(args.lr)\n",
    "set by another function": (
        "def distribute(options):\n    options.gpu = 0\n"
        "args = parser.parse_args()\ndistribute(args)\nprint(args.gpu)\n"
    ),
    "set by defaults": "parser.set_defaults(lr=1)\nargs = parser.parse_args()\nprint(args.lr)\n",
    "set by name": (
        "args = parser.parse_args()\nfor name in ['lr']:\n"
        "    vars(args)[name] = 1\nprint(args.lr)\n"
    ),
    "asked with care": "args = parser.parse_args()\nprint(args.lr if hasattr(args, 'lr') else 1)\n",
    "another object of the name": (
        "def f(args):\n    return args.shape\n"
        "args = parser.parse_args()\nimport types\nf(types.SimpleNamespace(shape=1))\n"
    ),
    "never called": "args = parser.parse_args()\ndef test():\n    args = load()\n    args.lr\n",
    "parsed in a main that is imported": "args = parser.parse_args()\n",
}


@pytest.mark.parametrize("name", WORKING)
def test_a_script_that_works_is_not_refused(tmp_path: Path, name: str) -> None:
    script = PARSER + WORKING[name] + USES

    assert found(tmp_path, script) == []
    assert run(tmp_path) == 0


def test_a_refusal_that_depends_on_a_condition_is_a_warning(tmp_path: Path) -> None:
    script = PARSER + "import os\nif os.environ.get('X'):\n    args = parser.parse_args()\n"

    problems = check(tmp_path, script + "    " + USES, hyperparameters={"lr": 1}).problems

    assert [(p.level, p.id) for p in problems] == [("warning", "script-undeclared-argument")]
    assert run(tmp_path, "--lr", "1") == 0


def test_a_script_that_python_is_told_to_run_is_examined(tmp_path: Path) -> None:
    algorithm = {"kind": "command", "code": {"url": str(tmp_path / "code")}}

    def ids(command: str) -> list[str]:
        changes = {"algorithm": algorithm | {"command": command}, "hyperparameters": {}}
        return [p.id for p in check(tmp_path, declaring("--lr required=True"), **changes).problems]

    assert ids("python -u train.py") == ["script-required-argument"]
    assert ids(shlex.join(["python", "train.py", "--lr", "1"])) == []


def test_what_a_shell_starts_is_said_not_to_be_checked(tmp_path: Path) -> None:
    make_job(tmp_path)
    (tmp_path / "code" / "start.sh").write_text('python train.py "$@"\n')
    code = {"url": str(tmp_path / "code")}

    findings = check(
        tmp_path,
        declaring(""),
        algorithm={"kind": "command", "code": code, "command": "sh start.sh"},
    )

    assert findings.problems == ()
    assert "arguments and imports of what `sh start.sh` starts" in findings.not_checked


@pytest.mark.parametrize(
    ("action", "style"), [("'store_true'", "flag"), ("argparse.BooleanOptionalAction", "pair")]
)
def test_a_flag_that_is_given_a_value_is_told_its_style(
    tmp_path: Path, action: str, style: str
) -> None:
    script = declaring(f"--fast action={action}")
    algorithm = {"code": {"url": str(tmp_path / "code")}, "boot_file": "train.py"}

    [problem] = check(tmp_path, script, hyperparameters={"fast": False}).problems
    styled = algorithm | {"arguments": {"booleans": style}}

    assert problem.do == f"write arguments: {{booleans: {style}}} below algorithm"
    assert check(tmp_path, script, hyperparameters={"fast": False}, algorithm=styled).problems == ()
