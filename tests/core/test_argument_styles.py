"""The trip of hyperparameters within their rules into a real argparse script, in every style."""

import contextlib
import io
import itertools
import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trainjob.job import TrainingJob
from trainjob.parameters import (
    ArgumentStyle,
    HyperparameterValue,
    hyperparameter_problems,
    parameter_argv,
)
from trainjob.plan import program_of
from trainjob.workspace import Workspace

ARGPARSE_SCRIPT = """
import argparse, json, sys

KINDS = {"boolean": lambda text: text == "true", "integer": int, "float": float, "string": str}

def read(rules, style, words):
    parser = argparse.ArgumentParser()
    for rule in rules:
        kind = KINDS[rule["type"]]
        if rule.get("is_list"):
            how = {
                "nargs": {"nargs": "*", "type": kind, "default": []},
                "repeat": {"action": "append", "type": kind, "default": []},
                "json": {"type": json.loads, "default": []},
            }[style["lists"]]
        elif rule["type"] == "boolean" and style["booleans"] != "value":
            how = {
                "pair": {"action": argparse.BooleanOptionalAction},
                "flag": {"action": "store_true"},
            }[style["booleans"]]
        else:
            how = {"type": kind}
        parser.add_argument("--" + rule["name"], dest=rule["name"], **how)
    return vars(parser.parse_args(words))
"""
READ_IN_A_PROCESS = """
rules, style = json.loads(sys.argv.pop(1))
print(json.dumps(read(rules, style, sys.argv[1:])))
"""
STYLES = [
    ArgumentStyle(booleans=booleans, lists=lists, equals=equals)
    for booleans, lists, equals in itertools.product(
        ("value", "pair", "flag"), ("nargs", "repeat", "json"), (False, True)
    )
]

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
dashed_texts = st.builds("{}{}".format, st.sampled_from(["-", "--", "-1", "--x=", "="]), texts)
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "integer": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "string": texts | dashed_texts,
}
names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,9}", fullmatch=True).filter(
    lambda name: name not in ("h", "help") and not name.startswith("no-")
)


def can_be_given(value: Any, *, is_list: bool, style: ArgumentStyle) -> bool:
    """Tell what hyperparameter_problems is promised to refuse of texts."""
    if not isinstance(value, str) or (is_list and style.lists == "json"):
        return True
    if is_list and style.lists == "nargs":
        return not value.startswith("-") or value == "-"
    return value != "--"


@st.composite
def rules_and_values(
    draw: st.DrawFn, style: ArgumentStyle
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Draw rules, the values of a job and what the script should get of both."""
    rules: list[dict[str, Any]] = []
    job_values: dict[str, Any] = {}
    expected: dict[str, Any] = {}
    unique_names = st.lists(
        names, unique_by=lambda name: name.upper().replace("-", "_"), max_size=4
    )
    for name in draw(unique_names):
        kind, is_list = draw(st.sampled_from(sorted(SCALARS))), draw(st.booleans())
        rule: dict[str, Any] = {"name": name, "type": kind, "is_list": is_list}
        scalars = SCALARS[kind].filter(partial(can_be_given, is_list=is_list, style=style))
        limit = draw(st.sampled_from(["none", "choices", "range"]))
        if limit == "choices" and kind != "boolean":
            rule["choices"] = draw(st.lists(scalars, min_size=1, max_size=3, unique=True))
            scalars = st.sampled_from(rule["choices"])
        elif limit == "range" and kind in ("integer", "float"):
            bounds = draw(st.lists(scalars, min_size=3, max_size=3).map(sorted))
            rule |= {"minimum": bounds[0], "maximum": bounds[2]}
            scalars = st.sampled_from(bounds)
        value = draw(st.lists(scalars, max_size=4) if is_list else scalars)
        how = draw(st.sampled_from(["default", "value", "text", "removed"]))
        if how == "default":
            rule["default"] = value
        elif how == "text" and not is_list:
            job_values[name] = value if isinstance(value, str) else repr(value)
        else:
            job_values[name] = None if how == "removed" else value
        if how != "removed":
            expected[name] = value
        rules.append(rule)
    return rules, job_values, expected


def job_with(
    rules: list[dict[str, Any]], values: dict[str, Any], style: ArgumentStyle
) -> TrainingJob:
    algorithm = {
        "code": {"url": "/code"},
        "boot_file": "train.py",
        "hyperparameters": rules,
        "arguments": style.model_dump(),
    }
    return TrainingJob.parse({"name": "x", "algorithm": algorithm, "hyperparameters": values})


def words_of(job: TrainingJob) -> list[str]:
    """Return the arguments after the boot file, as a run gives them to the script."""
    return list(program_of(job, Workspace(Path("/runs/1"))).argv[1:])


def exactly(value: Any) -> Any:
    """Return the value so that 1, 1.0 and True, and 0.0 and -0.0, are not equal."""
    if isinstance(value, list):
        return [exactly(item) for item in value]
    return type(value), value, isinstance(value, float) and math.copysign(1, value)


def said_nothing(rule: dict[str, Any], style: ArgumentStyle) -> Any:
    """Return what the script has where it is given nothing."""
    if rule["is_list"]:
        return []
    return False if rule["type"] == "boolean" and style.booleans == "flag" else None


@pytest.mark.parametrize("style", STYLES, ids=str)
@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(data=None)
def test_what_the_rules_allow_reaches_argparse_with_value_and_type(
    style: ArgumentStyle, data: st.DataObject | None
) -> None:
    rules, values, expected = (
        data.draw(rules_and_values(style)) if data else every_kind_of_value(style)
    )
    script: dict[str, Any] = {}
    exec(ARGPARSE_SCRIPT, script)

    words = words_of(job_with(rules, values, style))

    complaint = io.StringIO()
    with contextlib.redirect_stderr(complaint):
        try:
            read = script["read"](rules, style.model_dump(), words)
        except SystemExit:
            pytest.fail(f"argparse refused {words}: {complaint.getvalue()}")
    assert {name: exactly(value) for name, value in read.items()} == {
        rule["name"]: exactly(expected.get(rule["name"], said_nothing(rule, style)))
        for rule in rules
    }


def every_kind_of_value(
    style: ArgumentStyle,
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Return a rule for each type, alone and as a list, with values that are hard to give."""
    hard: dict[str, list[Any]] = {
        "boolean": [True, False],
        "integer": [-3, 0, 2**63 - 1],
        "float": [-1e-05, -0.0, 1e22],
        "string": ["a 'b' \"c\"\n", "größe 数字", "-", "", "x=y", "*"],
    }
    rules: list[dict[str, Any]] = []
    expected: dict[str, Any] = {}
    for kind, values in hard.items():
        rules.append({"name": f"{kind}-list", "type": kind, "is_list": True})
        expected[f"{kind}-list"] = values
        for i, value in enumerate(values):
            rules.append({"name": f"{kind}-{i}", "type": kind, "is_list": False})
            expected[f"{kind}-{i}"] = value
    rules.append({"name": "dashed", "type": "string", "is_list": False, "default": "--lr=3"})
    expected["dashed"] = "--lr=3"
    rules.append({"name": "nothing", "type": "float", "is_list": True, "default": []})
    return rules, {n: v for n, v in expected.items() if n != "dashed"}, expected | {"nothing": []}


@pytest.mark.parametrize("style", STYLES[::3] + STYLES[-1:], ids=str)
def test_a_real_process_reads_the_values(style: ArgumentStyle) -> None:
    rules, values, expected = every_kind_of_value(style)
    words = words_of(job_with(rules, values, style))
    script = ARGPARSE_SCRIPT + READ_IN_A_PROCESS
    declared = json.dumps([rules, style.model_dump()])

    done = subprocess.run(
        [sys.executable, "-c", script, declared, *words],
        capture_output=True,
        text=True,
        check=True,
    )

    read = json.loads(done.stdout)
    assert {name: exactly(value) for name, value in read.items()} == {
        name: exactly(value) for name, value in expected.items()
    }


VALUES: dict[str, HyperparameterValue] = {"lr": 0.5, "amp": True, "log": False, "sizes": [1, 2]}


@pytest.mark.parametrize(
    ("style", "words"),
    [
        (ArgumentStyle(), "--in /d --lr 0.5 --amp true --log false --sizes 1 2"),
        (ArgumentStyle(booleans="pair"), "--in /d --lr 0.5 --amp --no-log --sizes 1 2"),
        (ArgumentStyle(booleans="flag"), "--in /d --lr 0.5 --amp --sizes 1 2"),
        (
            ArgumentStyle(lists="repeat"),
            "--in /d --lr 0.5 --amp true --log false --sizes 1 --sizes 2",
        ),
        (ArgumentStyle(equals=True), "--in=/d --lr=0.5 --amp=true --log=false --sizes 1 2"),
        (
            ArgumentStyle(booleans="flag", lists="repeat", equals=True),
            "--in=/d --lr=0.5 --amp --sizes=1 --sizes=2",
        ),
    ],
    ids=str,
)
def test_the_words_of_each_style(style: ArgumentStyle, words: str) -> None:
    assert " ".join(parameter_argv({"in": "/d"}, VALUES, style)) == words


def test_a_list_as_json_is_one_word() -> None:
    style = ArgumentStyle(lists="json")

    assert parameter_argv({}, {"x": [1, True, "ü -"]}, style) == ["--x", '[1, true, "ü -"]']
    assert parameter_argv({}, {"x": []}, style) == ["--x", "[]"]


@pytest.mark.parametrize(
    ("style", "values", "problems"),
    [
        (ArgumentStyle(lists="repeat"), {"flags": ["-O2"]}, []),
        (ArgumentStyle(lists="json"), {"flags": ["-O2", "--"]}, []),
        (
            ArgumentStyle(lists="repeat"),
            {"flags": ["a", "--"]},
            [
                "hyperparameters.flags[1]: asked for '--', found the word that ends the options of "
                "a command line; write another text"
            ],
        ),
        (
            ArgumentStyle(booleans="pair"),
            {"amp": False, "no-amp": 1},
            [
                "hyperparameters.amp: asked for --no-amp, found hyperparameters.no-amp, which is "
                "given as --no-amp, too; rename one of them"
            ],
        ),
        (ArgumentStyle(booleans="flag"), {"amp": False, "no-amp": 1}, []),
    ],
    ids=str,
)
def test_what_cannot_be_given_depends_on_the_style(
    style: ArgumentStyle, values: dict[str, HyperparameterValue], problems: list[str]
) -> None:
    assert [str(problem) for problem in hyperparameter_problems(values, style)] == problems


def test_the_option_that_says_no_must_not_be_a_channel() -> None:
    job = {
        "name": "x",
        "algorithm": {
            "code": {"url": "/code"},
            "command": "true",
            "arguments": {"booleans": "pair"},
        },
        "inputs": [{"name": "no-amp", "url": "/data"}],
        "hyperparameters": {"amp": True},
    }

    with pytest.raises(ValueError, match=r"amp: asked for --no-amp, found a channel of that name"):
        TrainingJob.parse(job)
