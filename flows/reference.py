"""The reference of the job file as markdown, from the model's own schema."""

from typing import Any

from trainjob.job import TrainingJob


def job_file_reference() -> str:
    """Return every key of the job file with its type, default and help."""
    schema = TrainingJob.model_json_schema()
    models = schema["$defs"]
    lines = [
        "# The job file",
        "",
        "Printed by `python -m flows schema --markdown`. YAML 1.2 or, where the name ends in",
        "`.json`, JSON. Relative paths are relative to the job file.",
        "",
        *_model_table("TrainingJob", schema, models),
    ]
    for name, model in models.items():
        if "properties" in model:
            lines += _model_table(name, model, models)
    return "\n".join(lines)


def _model_table(name: str, model: dict[str, Any], models: dict[str, Any]) -> list[str]:
    required = set(model.get("required", ()))
    rows = [
        f"| `{key}` | {_type(field)} | {_default(key, field, required)} | {_help(field, models)} |"
        for key, field in model["properties"].items()
    ]
    help_text = model.get("description", "").replace("\n", " ")
    table = ["| key | type | default | meaning |", "|---|---|---|---|", *rows]
    return [f"## {name}", "", help_text, "", *table, ""]


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        kinds = [_type(kind) for kind in field["anyOf"] if kind.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return f"name: {_type(values)}" if isinstance(values, dict) else "name: value"
    return str(field.get("type", "value"))


def _default(key: str, field: dict[str, Any], required: set[str]) -> str:
    if key in required:
        return "**required**"
    default = field.get("default")
    if default is None:
        return "absent"
    if default == "":
        return "empty"
    return "its own defaults" if isinstance(default, dict) and default else f"`{default}`"


def _help(field: dict[str, Any], models: dict[str, Any]) -> str:
    # A field whose help is that of its model has it only there.
    model = models.get(field.get("$ref", "").rpartition("/")[2], {})
    text = field.get("description") or model.get("description", "")
    return str(text).replace("\n", " ").replace("|", "\\|")
