"""Rules of an algorithm for hyperparameters: what they take, what they refuse, and its words."""

from typing import Any

import pytest

from trainjob.algorithm import ScriptAlgorithm, merged_hyperparameters
from trainjob.errors import JobError
from trainjob.hyperparameter_rules import HyperparameterRule
from trainjob.job import TrainingJob

RULES: list[dict[str, Any]] = [
    {"name": "epochs", "type": "integer", "default": 3, "minimum": 1, "maximum": 10},
    {"name": "lr", "type": "float", "default": 0.1, "minimum": 0},
    {"name": "decay", "type": "float", "maximum": 1},
    {"name": "optimizer", "type": "string", "default": "adam", "choices": ["adam", "sgd"]},
    {"name": "batch_size", "type": "integer", "default": 32, "required": True},
    {"name": "seed", "type": "integer", "default": 42, "restricted": True},
    {"name": "amp", "type": "boolean", "default": False},
    {"name": "layers", "type": "integer", "is_list": True, "default": [64], "choices": [64, 128]},
    {"name": "note", "type": "string"},
]
DEFAULTS = {
    "epochs": 3,
    "lr": 0.1,
    "optimizer": "adam",
    "batch_size": 32,
    "seed": 42,
    "amp": False,
    "layers": [64],
}


def job_of(
    hyperparameters: dict[str, Any], rules: list[dict[str, Any]] | None = None, **algorithm: Any
) -> TrainingJob:
    own_rules = RULES if rules is None else rules
    code = {"code": {"url": "/code"}, "boot_file": "train.py", "hyperparameters": own_rules}
    return TrainingJob.parse(
        {"name": "x", "algorithm": code | algorithm, "hyperparameters": hyperparameters}
    )


def problems_in(
    hyperparameters: dict[str, Any], rules: list[dict[str, Any]] | None = None, **algorithm: Any
) -> list[str]:
    with pytest.raises(JobError) as caught:
        job_of(hyperparameters, rules, **algorithm)
    return [str(problem) for problem in caught.value.problems]


def test_a_job_that_says_nothing_gets_the_defaults() -> None:
    assert job_of({}).given_hyperparameters == DEFAULTS


def test_the_values_of_the_job_go_over_the_defaults_in_the_order_of_the_rules() -> None:
    given = job_of({"amp": True, "epochs": 5}).given_hyperparameters

    assert given == DEFAULTS | {"epochs": 5, "amp": True}
    assert list(given) == list(DEFAULTS)


def test_null_removes_an_optional_default() -> None:
    given = job_of({"lr": None, "note": None}).given_hyperparameters

    assert given == {name: value for name, value in DEFAULTS.items() if name != "lr"}


def test_the_fixed_value_may_be_repeated() -> None:
    assert job_of({"seed": "42"}).given_hyperparameters == DEFAULTS


def test_without_rules_every_value_stays_as_it_is_written() -> None:
    values = {"lr": "1e-3", "flag": True, "n": 3, "layers": [1, 2.5, "x"]}

    assert job_of(values, rules=[]).given_hyperparameters == values


def test_a_job_keeps_what_was_written_so_that_a_default_is_never_taken_for_its_own() -> None:
    job = job_of({"epochs": "5", "lr": None})

    again = TrainingJob.parse(job.model_dump(mode="json"))

    assert again == job
    assert again.hyperparameters == {"epochs": "5", "lr": None}


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        ("integer", "3", 3),
        ("integer", "-3", -3),
        ("integer", 1e3, 1000),
        ("float", 3, 3.0),
        ("float", "1e-3", 0.001),
        ("float", "-.5", -0.5),
        ("boolean", "False", False),
        ("boolean", "true", True),
        ("string", "3", "3"),
        ("string", "", ""),
    ],
)
def test_a_text_that_says_a_value_is_read_in_the_type_of_the_rule(
    kind: str, value: Any, read: Any
) -> None:
    given = job_of({"x": value}, rules=[{"name": "x", "type": kind}]).given_hyperparameters

    assert given == {"x": read}
    assert type(given["x"]) is type(read)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(
            ("integer", value)
            for value in (3.5, "3.5", "1e3", "", " 3", "0x1", "٣", True, "9" * 41)
        ),
        ("integer", 2.0**60),
        *(("float", value) for value in ("nan", "inf", "1e999", "", " 1", "1_0", True, 10**400)),
        *(("boolean", value) for value in (0, 1, 0.0, "no", "yes", "0", "")),
        *(("string", value) for value in (1, 1.5, False)),
    ],
)
def test_nothing_else_is_turned_into_another_type(kind: str, value: Any) -> None:
    asked = {
        "integer": "an integer",
        "float": "a finite number",
        "boolean": "true or false",
        "string": "a text",
    }[kind]

    [problem] = problems_in({"x": value}, rules=[{"name": "x", "type": kind}])

    assert problem.startswith(f"hyperparameters.x: asked for {asked}, found ")


def test_the_types_may_be_written_as_modelarts_does() -> None:
    rules = [{"name": name, "type": name} for name in ("String", "Integer", "Float", "Boolean")]

    types = [rule.type for rule in job_of({}, rules=rules).algorithm.hyperparameters]

    assert types == ["string", "integer", "float", "boolean"]


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 11}, "epochs: asked for an integer from 1 to 10, found 11; change it"),
    ({"epochs": 0}, "epochs: asked for an integer from 1 to 10, found 0; change it"),
    ({"lr": -0.1}, "lr: asked for a finite number of at least 0, found -0.1; change it"),
    ({"decay": 2}, "decay: asked for a finite number of at most 1, found 2; change it"),
    (
        {"optimizer": "adm"},
        "optimizer: asked for one of 'adam', 'sgd', found 'adm'; did you mean 'adam'?",
    ),
    ({"optimizer": 1}, "optimizer: asked for one of 'adam', 'sgd', found 1; change it"),
    ({"note": 1.10}, "note: asked for a text, found 1.1; write it in quotes"),
    ({"layers": 64}, "layers: asked for a list of 64, 128, found 64; write [64]"),
    ({"layers": [64, 7]}, "layers[1]: asked for one of 64, 128, found 7; change it"),
    ({"lr": [0.1]}, "lr: asked for a finite number of at least 0, found [0.1]; write one value"),
    ({"seed": 7}, "seed: asked for 42, which the algorithm fixes, found 7; remove it"),
    ({"seed": "x"}, "seed: asked for 42, which the algorithm fixes, found 'x'; remove it"),
    (
        {"seed": None},
        "seed: asked for 42, which the algorithm fixes, found null, which removes it; "
        "remove the line, for the default",
    ),
    (
        {"batch_size": None},
        "batch_size: asked for an integer, which the algorithm requires, found null, which removes "
        "it; remove the line, for the default",
    ),
    (
        {"epoch": 3},
        "epoch: asked for a hyperparameter of the algorithm, found 'epoch'; did you mean 'epochs'?",
    ),
    (
        {"zzz": 3},
        "zzz: asked for a hyperparameter of the algorithm, found 'zzz'; remove it; known: epochs, "
        "lr, decay, optimizer, batch_size, seed, amp, layers, note",
    ),
    ({"note": "a\0"}, "note: asked for a text without NUL, found 'a\\x00'; remove the NUL, which"),
]


@pytest.mark.parametrize(("hyperparameters", "problem"), BROKEN)
def test_a_value_that_breaks_a_rule_is_one_problem(
    hyperparameters: dict[str, Any], problem: str
) -> None:
    [found] = problems_in(hyperparameters)

    assert found.startswith(f"hyperparameters.{problem}")


def test_every_broken_rule_is_a_line_of_its_own() -> None:
    given = {"epochs": 11, "lr": -1, "optimizer": "x", "seed": 1, "amp": 1, "layers": 3, "q": 1}

    fields = [problem.partition(":")[0] for problem in problems_in(given)]

    assert fields == [f"hyperparameters.{name}" for name in given]


def test_a_required_value_without_a_default_has_to_be_given() -> None:
    rules = [{"name": "classes", "type": "integer", "required": True, "minimum": 2}]
    asked = "hyperparameters.classes: asked for an integer of at least 2, which the algorithm "

    assert problems_in({}, rules) == [
        f"{asked}requires, found nothing; add classes: to hyperparameters"
    ]
    assert problems_in({"classes": None}, rules) == [
        f"{asked}requires, found null, which removes it; give a value"
    ]
    assert job_of({"classes": 2}, rules).given_hyperparameters == {"classes": 2}


def test_others_than_the_rules_name_are_taken_only_where_the_algorithm_allows_them() -> None:
    given = job_of({"extra": "1"}, allow_custom_hyperparameters=True).given_hyperparameters

    assert given == DEFAULTS | {"extra": "1"}
    assert problems_in({"extra": 1}, rules=[], allow_custom_hyperparameters=False) == [
        "hyperparameters.extra: asked for a hyperparameter of the algorithm, found 'extra'; "
        "remove it; it takes none"
    ]
    assert problems_in({"extra": None}, allow_custom_hyperparameters=True) == [
        "hyperparameters.extra: asked for a text, a number, true or false, or a list of these, "
        "found None; change it"
    ]


RULE = {"name": "x", "type": "integer"}
BAD_RULES: list[tuple[dict[str, Any], str]] = [
    ({"type": "int"}, "type: asked for 'string', 'integer', 'float' or 'boolean', found 'int'"),
    ({"name": "-x"}, "name: asked for 1 to 64 letters, digits, - and _, not starting with -"),
    ({"default": "a"}, "default: asked for an integer, found 'a'; change it"),
    ({"default": {}}, "default: asked for a text, a number, true or false, or a list of these"),
    ({"default": 0, "minimum": 1}, "default: asked for an integer of at least 1, found 0"),
    ({"default": [1]}, "default: asked for an integer, found [1]; write one value"),
    ({"type": "string", "default": "--"}, "default: asked for '--', found the word that ends"),
    ({"minimum": "a"}, "minimum: asked for a number, found 'a'; change it"),
    ({"minimum": True}, "minimum: asked for a number, found True; change it"),
    ({"minimum": 0.5}, "minimum: asked for an integer, found 0.5; change it"),
    ({"maximum": 2**63}, "maximum: asked for an integer of at most 64 bits, found 92233720"),
    ({"minimum": 5, "maximum": 3}, "minimum: asked for at most the maximum 3, found 5; change"),
    (
        {"type": "string", "maximum": 3},
        "maximum: asked for a bound of an integer or float, found the type string; remove it",
    ),
    ({"minimum": 1, "choices": [1]}, "minimum: asked for either choices or a range, found both"),
    ({"choices": [{}]}, "choices[0]: asked for a text, a number, true or false, found {}"),
    ({"choices": [1, "b"]}, "choices[1]: asked for an integer, found 'b'; change it"),
    ({"choices": [1, "1"]}, "choices[1]: asked for every choice once, found '1' again; remove"),
    (
        {"type": "string", "choices": ["a", 1]},
        "choices[1]: asked for a text, found 1; write it in quotes",
    ),
    (
        {"type": "boolean", "choices": [True]},
        "choices: asked for true and false, which are all choices, found choices; remove choices",
    ),
    ({"restricted": True}, "default: asked for the one value, found nothing; add default: or"),
    ({"description": "a (b)"}, "description: asked for letters, digits, spaces, hyphens, under"),
    ({"requird": True}, "requird: asked for a known key, found 'requird'; did you mean 'required'"),
]


@pytest.mark.parametrize(("change", "problem"), BAD_RULES)
def test_a_rule_that_is_wrong_is_one_problem_and_judges_no_value(
    change: dict[str, Any], problem: str
) -> None:
    [found] = problems_in({"x": "whatever", "other": True}, [RULE | change, *RULES_OF_OTHERS])

    assert found.startswith(f"algorithm.hyperparameters[0].{problem}")


RULES_OF_OTHERS = [{"name": "other", "type": "boolean"}]


def test_two_rules_of_one_variable_are_a_problem() -> None:
    rules = [{"name": "batch-size", "type": "integer"}, {"name": "BATCH_SIZE", "type": "float"}]

    assert problems_in({}, rules) == [
        "algorithm.hyperparameters[1].name: asked for 'BATCH_SIZE', found 'batch-size' at "
        "algorithm.hyperparameters[0], which has the same variable; rename or remove one of them"
    ]


def test_what_a_rule_says_is_told_beside_rules_that_are_wrong() -> None:
    rules: list[dict[str, Any]] = [
        {"name": "a", "type": "int"},
        {"name": "b", "type": "boolean", "default": "maybe"},
        {"name": "c", "type": "float"},
        {"type": "string", "name": "d", "default": {}},
    ]

    problems = problems_in({"a": "x", "c": "y", "d": 1, "e": 1}, rules)

    assert [problem.partition(":")[0] for problem in problems] == [
        "algorithm.hyperparameters[0].type",
        "algorithm.hyperparameters[3].default",
        "algorithm.hyperparameters[1].default",
        "hyperparameters.c",
        "hyperparameters.e",
    ]


def test_a_default_must_not_hide_a_channel() -> None:
    data = {
        "name": "x",
        "algorithm": {
            "code": {"url": "/code"},
            "command": "true",
            "hyperparameters": [{"name": "data_url", "type": "string", "default": "x"}],
        },
        "inputs": [{"name": "data_url", "url": "/data"}],
    }

    with pytest.raises(JobError, match=r"hyperparameters\.data_url: asked for --data_url, found a"):
        TrainingJob.parse(data)


def test_a_saved_algorithm_is_read_back_with_its_rules() -> None:
    algorithm = job_of({}).algorithm

    again = ScriptAlgorithm.model_validate_json(algorithm.model_dump_json())

    assert again == algorithm
    assert merged_hyperparameters(again, {}).values == DEFAULTS
    assert again.hyperparameters[0] == HyperparameterRule.model_validate(RULES[0])


@pytest.mark.parametrize(
    ("hyperparameters", "name"),
    [
        ({"epochs": 11}, "hyperparameters"),
        ({"seed": 1}, "hyperparameter-restricted"),
        ({"seed": None}, "hyperparameter-restricted"),
        ({"batch_size": None}, "hyperparameter-required"),
        ({"epoch": 3}, "hyperparameter-unknown"),
    ],
)
def test_a_problem_is_known_by_the_rule_that_is_broken(
    hyperparameters: dict[str, Any], name: str
) -> None:
    with pytest.raises(JobError) as caught:
        job_of(hyperparameters)

    assert [problem.id for problem in caught.value.problems] == [name]
