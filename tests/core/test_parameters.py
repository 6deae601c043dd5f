import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainjob.parameters import (
    MAX_VALUE_BYTES,
    HyperparameterValue,
    channel_env_name,
    hyperparameter_problems,
    parameter_argv,
    parameter_environment,
    write_params,
)

ARGPARSE_SCRIPT = """
import argparse, json, sys

KINDS = {"bool": lambda text: text == "true", "int": int, "float": float, "str": str}

def read(kinds, argv):
    parser = argparse.ArgumentParser()
    for name, (kind, is_list) in kinds.items():
        nargs = "*" if is_list else None
        parser.add_argument(f"--{name}", dest=name, type=KINDS[kind], nargs=nargs)
    return vars(parser.parse_args(argv))

if len(sys.argv) > 1:
    print(json.dumps(read(json.loads(sys.argv[1]), sys.argv[2:])))
else:
    for line in sys.stdin:
        kinds, argv = json.loads(line)
        try:
            answer = read(kinds, argv)
        except SystemExit as error:
            answer = f"argparse refused {argv}"
        print(json.dumps(answer), flush=True)
"""

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
dashed_texts = st.builds(
    "{}{}".format, st.sampled_from(["-", "--", "-1", "-lr=", "--lr=", "="]), texts
)
SINGLES = {
    "bool": st.booleans(),
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "str": (texts | dashed_texts).filter(lambda text: text != "--"),
}
ITEMS = {
    **SINGLES,
    "str": (texts | dashed_texts).filter(lambda text: not text.startswith("-") or text == "-"),
}
names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,9}", fullmatch=True).filter(
    lambda name: name not in ("h", "help")
)


@st.composite
def typed_hyperparameters(draw: st.DrawFn) -> dict[str, tuple[str, HyperparameterValue]]:
    drawn: dict[str, tuple[str, HyperparameterValue]] = {}
    for name in draw(st.lists(names, unique_by=hyperparameter_key, max_size=5)):
        kind = draw(st.sampled_from(sorted(SINGLES)))
        value: Any = draw(SINGLES[kind] | st.lists(ITEMS[kind], max_size=4))
        drawn[name] = (kind, value)
    return drawn


def hyperparameter_key(name: str) -> str:
    return name.upper().replace("-", "_")


class ArgparseProcess:
    """The script above in a process of its own, given one case a line."""

    def __init__(self, process: "subprocess.Popen[str]", stdin: IO[str], stdout: IO[str]) -> None:
        self.process, self.stdin, self.stdout = process, stdin, stdout

    def read(self, kinds: dict[str, tuple[str, bool]], argv: list[str]) -> Any:
        self.stdin.write(json.dumps([kinds, argv]) + "\n")
        self.stdin.flush()
        return json.loads(self.stdout.readline())


@pytest.fixture(scope="module")
def argparse_process() -> Iterator[ArgparseProcess]:
    with subprocess.Popen(
        [sys.executable, "-c", ARGPARSE_SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield ArgparseProcess(process, process.stdin, process.stdout)


@given(drawn=typed_hyperparameters())
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_argparse_reads_back_every_value_with_its_type(
    argparse_process: ArgparseProcess, drawn: dict[str, tuple[str, HyperparameterValue]]
) -> None:
    values = {name: value for name, (_, value) in drawn.items()}
    kinds = {name: (kind, isinstance(value, list)) for name, (kind, value) in drawn.items()}

    read = argparse_process.read(kinds, parameter_argv({}, values))

    assert hyperparameter_problems(values) == []
    assert exactly(read) == exactly(values)


def exactly(value: Any) -> Any:
    """Return the value so that 1, 1.0 and True, and 0.0 and -0.0, are not equal."""
    if isinstance(value, dict):
        return {key: exactly(item) for key, item in value.items()}
    if isinstance(value, list):
        return [exactly(item) for item in value]
    return type(value), value, isinstance(value, float) and math.copysign(1, value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("float", -1e-05),
        ("float", -1e-300),
        ("float", [-1e-300, -1e22, -0.0, 1e22, -5e-324, -1.7976931348623157e308]),
        ("int", -3),
        ("bool", [True, False]),
        ("str", "-foo"),
        ("str", "--lr=3"),
        ("str", ""),
        ("str", "a \"quoted\" 'text'\nof two lines\t and $HOME `x` \\"),
        ("str", "größe 数字 🙂"),
        ("str", ["", "a b", "x=y", "-", "*"]),
        ("str", []),
    ],
)
def test_a_real_process_reads_back_the_value(kind: str, value: HyperparameterValue) -> None:
    kinds = json.dumps({"x": (kind, isinstance(value, list))})
    command = [sys.executable, "-c", ARGPARSE_SCRIPT, kinds, *parameter_argv({}, {"x": value})]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert exactly(json.loads(done.stdout)["x"]) == exactly(value)


def test_argv_has_channels_first_and_two_words_a_value() -> None:
    channels = {"data_url": Path("/runs/1/inputs/data_url"), "train_url": Path("/a b/out")}

    argv = parameter_argv(channels, {"epochs": 3, "lr": -0.5, "nesterov": True, "sizes": [1, 2]})

    assert argv == [
        *("--data_url", "/runs/1/inputs/data_url"),
        *("--train_url", "/a b/out"),
        *("--epochs", "3"),
        "--lr=-0.5",
        *("--nesterov", "true"),
        *("--sizes", "1", "2"),
    ]


def test_environment_has_channels_hyperparameters_and_the_path_of_the_file() -> None:
    hyperparameters: dict[str, HyperparameterValue] = {
        "batch-size": 32,
        "lr": 1e-05,
        "amp": False,
        "layers": [1, True, "ü"],
        "note": "-x",
    }

    environment = parameter_environment(
        {"data-url": Path("/in")}, hyperparameters, Path("/run/params.json")
    )

    assert environment == {
        "DATA_URL": "/in",
        "TRAINJOB_HP_BATCH_SIZE": "32",
        "TRAINJOB_HP_LR": "1e-05",
        "TRAINJOB_HP_AMP": "false",
        "TRAINJOB_HP_LAYERS": '[1, true, "ü"]',
        "TRAINJOB_HP_NOTE": "-x",
        "TRAINJOB_PARAMS": "/run/params.json",
    }


def test_environment_name_of_a_channel_is_its_name_in_capitals() -> None:
    assert channel_env_name("pre-trained_model") == "PRE_TRAINED_MODEL"


@given(drawn=typed_hyperparameters())
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_params_file_keeps_every_type(
    tmp_path: Path, drawn: dict[str, tuple[str, HyperparameterValue]]
) -> None:
    values = {name: value for name, (_, value) in drawn.items()}

    write_params(tmp_path / "params.json", {"data_url": Path("/in")}, values)

    document = json.loads((tmp_path / "params.json").read_bytes())
    assert document["channels"] == {"data_url": "/in"}
    assert exactly(document["hyperparameters"]) == exactly(values)


def test_params_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "params.json"

    write_params(path, {}, {"text": "x" * 10_000})
    write_params(path, {}, {"text": "größe"})

    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text("utf-8") == (
        '{\n  "channels": {},\n  "hyperparameters": {\n    "text": "größe"\n  }\n}\n'
    )


def test_params_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    write_params(path, {}, {"epochs": 1})
    before = path.read_bytes()

    with pytest.raises(ValueError, match="Out of range float"):
        write_params(path, {}, {"lr": math.nan})

    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("hyperparameters", "problem"),
    [
        (
            {"note": "a\0b"},
            "hyperparameters.note: asked for a text without NUL, found 'a\\x00b'; "
            "remove the NUL, which ends every text that a program is given",
        ),
        (
            {"notes": ["ok", "\0"]},
            "hyperparameters.notes[1]: asked for a text without NUL, found '\\x00'; "
            "remove the NUL, which ends every text that a program is given",
        ),
        (
            {"flags": [1, "-O2"]},
            "hyperparameters.flags[1]: asked for a text that does not start with - inside a list, "
            "found '-O2'; write it without the -, or give it as a hyperparameter of its own",
        ),
        (
            {"end": "--"},
            "hyperparameters.end: asked for '--', found the word that ends the options of a "
            "command line; write another text",
        ),
        (
            {"batch-size": 1, "batch_size": 2},
            "hyperparameters.batch_size: asked for 'batch_size', found hyperparameters.batch-size, "
            "which has the same variable TRAINJOB_HP_BATCH_SIZE; rename one of them",
        ),
        (
            {"LR": 1, "lr": 2},
            "hyperparameters.lr: asked for 'lr', found hyperparameters.LR, "
            "which has the same variable TRAINJOB_HP_LR; rename one of them",
        ),
        (
            {"table": "ü" * MAX_VALUE_BYTES},
            "hyperparameters.table: asked for at most 100,000 bytes, found 200,000 bytes; "
            "put it into a file and give that as an input channel",
        ),
    ],
)
def test_a_value_that_would_not_arrive_is_a_problem(
    hyperparameters: dict[str, HyperparameterValue], problem: str
) -> None:
    assert [str(p) for p in hyperparameter_problems(hyperparameters)] == [problem]


def test_all_problems_are_found_at_once() -> None:
    problems = hyperparameter_problems({"a": "--", "b": ["-x", "\0"], "A": 1})

    assert [p.field for p in problems] == [
        "hyperparameters.a",
        "hyperparameters.b[1]",
        "hyperparameters.b[0]",
        "hyperparameters.A",
    ]


def test_the_longest_value_that_is_taken_can_be_given_to_a_process() -> None:
    values: dict[str, HyperparameterValue] = {"x": "x" * MAX_VALUE_BYTES}

    done = subprocess.run(
        [sys.executable, "-c", "import sys; print(len(sys.argv[2]))", *parameter_argv({}, values)],
        env={**os.environ, **parameter_environment({}, values, Path("/p"))},
        capture_output=True,
        text=True,
        check=True,
    )

    assert hyperparameter_problems(values) == []
    assert int(done.stdout) == MAX_VALUE_BYTES
