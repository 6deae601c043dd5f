"""What a person reads of hyperparameters and rules that are odd."""

from typing import Any

import pytest

from trainjob.errors import JobError
from trainjob.job import TrainingJob


def problems_in(hyperparameters: dict[str, Any], rules: Any) -> list[str]:
    algorithm = {"code": {"url": "/code"}, "boot_file": "train.py", "hyperparameters": rules}
    job = {"name": "x", "algorithm": algorithm, "hyperparameters": hyperparameters}
    with pytest.raises(JobError) as caught:
        TrainingJob.parse(job)
    return [str(problem) for problem in caught.value.problems]


def test_rules_that_are_no_list_of_mappings_are_told_in_words_of_yaml() -> None:
    rules = {"lr": {"type": "float"}}

    assert problems_in({}, rules) == [
        f"algorithm.hyperparameters: asked for a list, found {rules!r}; change it"
    ]
    assert problems_in({}, ["lr"]) == [
        "algorithm.hyperparameters[0]: asked for keys and values, found 'lr'; change it"
    ]


def test_of_many_choices_a_message_names_some() -> None:
    rule = {"name": "x", "type": "integer", "choices": list(range(500))}

    [found] = problems_in({"x": -1}, [rule])

    assert found == (
        "hyperparameters.x: asked for one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, "
        "16, 17, 18, 19 and 480 more, found -1; change it"
    )


def test_a_text_that_no_file_can_hold_is_one_problem() -> None:
    rule = {"name": "x", "type": "string"}
    asked = (
        "asked for a text of characters that UTF-8 can write, found '\\ud800'; remove the others"
    )

    assert problems_in({"x": "\ud800"}, [rule]) == [f"hyperparameters.x: {asked}"]


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, str(2**63), "9" * 60])
def test_an_integer_beyond_64_bits_is_told_to_be_smaller_where_a_text_is_no_help(
    value: int | str,
) -> None:
    [found] = problems_in({"x": value}, [{"name": "x", "type": "integer"}])

    asked = "hyperparameters.x: asked for an integer, found "
    assert found.startswith(asked)
    assert found.endswith("; write one of at most 64 bits")


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ({"type": "integer", "default": 2**63}, "default"),
        ({"type": "integer", "choices": [1, 2**63]}, "choices[1]"),
        ({"type": "integer", "maximum": 2**63}, "maximum"),
        ({"type": "float", "maximum": 2**63}, "maximum"),
    ],
)
def test_no_integer_of_a_rule_beyond_64_bits_is_told_to_be_a_text(
    rule: dict[str, Any], field: str
) -> None:
    [found] = problems_in({}, [{"name": "x"} | rule])

    assert found.startswith(f"algorithm.hyperparameters[0].{field}: asked for an integer")
    assert found.endswith("; write one of at most 64 bits")
