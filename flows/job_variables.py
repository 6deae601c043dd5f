"""Job variables: what a pool is told of one run, such as the image that its container starts in.

Prefect lays those of a run over those of its deployment, and these over what the pool says. Read
from the command line here, and taken over by a rerun.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from prefect.client.schemas.objects import WorkPool
from prefect.utilities.schema_tools import (
    CircularSchemaRefError,
    ValidationError,
    is_valid_schema,
    validate,
)

from trainjob.env_rules import open_secret_problems
from trainjob.errors import JobError, TrainjobError
from trainjob.jobfile import read_value


def fields_of(pool: WorkPool | None) -> dict[str, Any]:
    """Return the job variables that the template of a pool has, each with its schema."""
    return cast(dict[str, Any], _schema_of(pool).get("properties") or {})


def merged(*layers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return job variables with those of later layers over those before, as a worker does.

    Environment variables are merged one by one.
    """
    variables: dict[str, Any] = {}
    for layer in layers:
        env = variables.get("env")
        variables |= layer or {}
        if isinstance(env, dict) and isinstance(variables["env"], dict):
            variables["env"] = env | variables["env"]
    return variables


def environment_of(pool: WorkPool | None, *layers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the environment that a pool gives to a run, laid out as its worker does.

    What the pool sets itself comes first, then the default of the variable `env`, then variables
    such as `env.LEVEL`, then `env`.

    Args:
        pool: The pool; None if there is none.
        layers: Job variables of the deployment and of the run, later ones over those before.
    """
    configuration = pool.base_job_template.get("job_configuration", {}) if pool else {}
    default = fields_of(pool).get("env", {}).get("default")
    given = merged(*layers)
    dotted = {
        name.removeprefix("env."): value for name, value in given.items() if name.startswith("env.")
    }
    env: dict[str, Any] = {}
    for part in (configuration.get("env"), default, dotted, given.get("env")):
        env |= part if isinstance(part, dict) else {}
    return env


def read_variables(texts: Sequence[str], pool: WorkPool | None) -> dict[str, Any]:
    """Read job variables as they were typed, and see that a pool takes them.

    Args:
        texts: ``KEY=VALUE`` each; a value is read as in a job file, or as text where the pool wants
            text.
        pool: The pool; None if there is none, which takes none.

    Raises:
        TrainjobError: If one is none, or not one of the pool, or not of its type.
        JobError: If one of `env` is a secret, which everyone who sees the run could read.
    """
    variables = merged(*(_read(text, pool) for text in texts))
    if problems := open_secret_problems(variables.get("env")):
        raise JobError("--job-variable", problems)
    return variables


def _read(text: str, pool: WorkPool | None) -> dict[str, Any]:
    name, separator, given = text.partition("=")
    if not separator or not name:
        raise TrainjobError(
            f"asked for the job variable {text!r}, found no {'name' if separator else 'value'}; "
            "write KEY=VALUE, such as image=registry.example.com/trainjob:1"
        )
    fields = fields_of(pool)
    if name not in fields:
        raise _unknown(name, fields, pool)
    problem = ""
    # Text may be empty, but neither an image nor a size is: no value is null, where that may be.
    for value in (read_value(given), given) if given else (None,):
        wrong = _problems({name: value}, pool)
        if not wrong:
            return {name: value}
        problem = problem or (wrong[0] if given else "no value")
    raise TrainjobError(
        f"asked for the job variable {text!r}, found {problem}; see the form of the work pool "
        f"{_named(pool)}"
    )


def _problems(variables: dict[str, Any], pool: WorkPool | None) -> list[str]:
    """Return what the form of a pool has against variables, in the words of Prefect."""
    schema = _schema_of(pool)
    try:
        is_valid_schema(schema, preprocess=False)
        return [problem.message for problem in validate(variables, schema, ignore_required=True)]
    except (ValueError, ValidationError, CircularSchemaRefError) as error:
        why = str(error) or "a part of it refers to itself"
        raise TrainjobError(
            f"asked for the job variables {', '.join(variables)}, found that the form of the work "
            f"pool {_named(pool)} is broken ({why}); correct its base job template"
        ) from error


def _schema_of(pool: WorkPool | None) -> dict[str, Any]:
    template = pool.base_job_template if pool else {}
    return cast(dict[str, Any], template.get("variables") or {})


def _unknown(name: str, fields: Mapping[str, Any], pool: WorkPool | None) -> TrainjobError:
    near = difflib.get_close_matches(name, list(fields), n=1)
    known = ", ".join(sorted(fields)) or "none at all"
    do = f"did you mean {near[0]!r}?" if near else "give one of these, or run it in another pool"
    return TrainjobError(
        f"asked for the job variable {name!r}, found that the pool {_named(pool)} has none of "
        f"that name, but {known}; {do}"
    )


def _named(pool: WorkPool | None) -> str:
    return f"{pool.name!r} ({pool.type})" if pool else "of the deployment, which has none,"
