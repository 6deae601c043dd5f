"""What the form of a job calls its fields: words for keys, groups as the products have them, tabs.

A form, such as that of Prefect's UI, has nothing but the job's JSON schema. Used by the models of
the job; no run depends on anything here.
"""

from typing import Any

_GROUPS = {
    "Basic information": ("name", "kind", "description", "tags", "profile"),
    "Algorithm": ("algorithm",),
    "Data": ("inputs", "outputs", "checkpoints", "store"),
    "Hyperparameters": ("hyperparameters",),
    "Environment": ("env", "secrets", "environment", "sandbox"),
    "Resources": ("resources", "launcher"),
    "Limits": ("limits",),
    "Watching": ("metrics", "logs"),
}
_GROUP_OF = {name: group for group, names in _GROUPS.items() for name in names}
_WORDS = {
    "allow_custom_hyperparameters": "Other hyperparameters",
    "url": "URL",
    "ref": "Branch, tag or commit",
    "expect": "Expected fingerprint",
    "env": "Variables",
    "environment": "Packages",
    "resources": "Machine",
    "memory_gib": "Memory in GiB",
    "disk_gib": "Disk in GiB",
}
_TABS = {
    "string": "Text",
    "integer": "Whole number",
    "number": "Number",
    "boolean": "Yes or no",
    "array": "List",
    "object": "Table",
    "null": "Absent",
}

WRITTEN_BY_OTHERS: dict[str, Any] = {"position": 1}
"""For a field that no person fills in: Prefect's form puts it after those that have no position."""


def title(name: str, _field: Any = None) -> str:
    """Return the title of a field: its key in words."""
    return _WORDS.get(name) or name.replace("_", " ").capitalize()


def title_in_group(name: str, _field: Any = None) -> str:
    """Return the title of a field of the job itself, with the group that it belongs to."""
    group, words = _GROUP_OF.get(name), title(name)
    return words if group in (None, words) else f"{group} · {words}"


def name_tabs(schema: dict[str, Any]) -> None:
    """Give the forms that a value of the model's schema may have titles, where they have none."""
    for field in schema.get("properties", {}).values():
        for tab in field.get("anyOf", ()):
            if "type" in tab:
                tab.setdefault("title", "Choice" if "enum" in tab else _TABS[tab["type"]])
