"""What the form of the UI makes of the job's schema: titles, groups and tabs that people can read.

The form has nothing but the schema. Prefect 3.8.8's new UI calls a field without a title of its
own "Field", or by the Python name of its model.
"""

from itertools import groupby
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from trainjob.job import TrainingJob
from trainjob.limits import Limits

SCHEMA = TrainingJob.model_json_schema()
MODELS: dict[str, Any] = {"TrainingJob": SCHEMA, **SCHEMA["$defs"]}
GROUPS = [
    "Basic information",
    "Algorithm",
    "Data",
    "Hyperparameters",
    "Environment",
    "Resources",
    "Limits",
    "Watching",
]


def fields(model: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = MODELS[model].get("properties", {})
    return found


def shown(field: dict[str, Any], key: str) -> str | None:
    """Return what the form shows of a field: pydantic leaves out what its model says, too."""
    model = field.get("$ref", "").rpartition("/")[2]
    text: str | None = field.get(key, MODELS.get(model, {}).get(key))
    return text


def shown_title(field: dict[str, Any]) -> str | None:
    """Return what the form calls a field."""
    return shown(field, "title")


@pytest.mark.parametrize("model", MODELS)
def test_every_field_has_a_title_of_its_own_in_words(model: str) -> None:
    titles = [shown_title(field) or "" for field in fields(model).values()]

    assert len(set(titles)) == len(titles)
    assert [title for title in titles if not title[:1].isupper() or "_" in title] == []


@pytest.mark.parametrize("model", MODELS)
def test_every_field_has_help_of_its_own(model: str) -> None:
    helps = {name: shown(field, "description") or "" for name, field in fields(model).items()}

    assert [name for name, text in helps.items() if not text.endswith(".")] == []
    assert len(set(helps.values())) == len(helps)


@pytest.mark.parametrize("model", MODELS)
def test_every_tab_has_a_title_in_words(model: str) -> None:
    tabs = [(name, tab) for name, field in fields(model).items() for tab in field.get("anyOf", ())]

    assert [name for name, tab in tabs if "title" not in tab and "$ref" not in tab] == []


def test_the_fields_stand_in_the_groups_of_the_products_and_in_their_order() -> None:
    titles = [shown_title(field) or "" for field in fields("TrainingJob").values()]
    groups = [title.partition(" · ")[0] for title in titles]

    assert [group for group, _ in groupby(groups)] == GROUPS


@pytest.mark.parametrize("algorithm", ["ScriptAlgorithm", "CommandAlgorithm"])
def test_what_a_person_fills_in_comes_before_what_the_tab_or_the_run_writes(algorithm: str) -> None:
    by_position = sorted(fields(algorithm).items(), key=lambda pair: pair[1].get("position", 0))
    shown = [name for name, _ in by_position]

    assert shown[0] == "code"
    assert shown[-4:] == ["kind", "inputs", "outputs", "registered"]


@pytest.mark.parametrize(
    ("name", "given", "is_right"),
    [
        ("auto_stop", "10 parsecs", False),
        ("auto_stop", "10", False),
        ("auto_stop", "1H 30m", True),
        ("auto_stop", "1.5h", True),
        ("auto_stop", "off", True),
        ("auto_stop", None, True),
        ("grace", "soon", False),
        ("grace", "off", False),
        ("grace", "90s", True),
    ],
)
def test_the_form_refuses_the_durations_that_a_job_refuses(
    name: str, given: str | None, is_right: bool
) -> None:
    """Prefect holds the form against the schema; what is only in validators it cannot know."""
    schema = Draft202012Validator(fields("Limits")[name])

    assert schema.is_valid(given) == is_right
    if is_right:
        Limits.model_validate({name: given})
    else:
        with pytest.raises(ValidationError):
            Limits.model_validate({name: given})
