"""What the parts of a job are built from: the base of its models, and the values they share."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StringConstraints

from trainjob.form_titles import name_tabs, title

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$")]
"""1 to 64 letters, digits, - and _ (ModelArts, creating an algorithm). A leading - is refused
here, which ModelArts allows: it would make ``--name`` ambiguous on a command line."""


def _one_line(text: str) -> str:
    if not text.strip() or any(c in text for c in "\n\r\0"):
        raise ValueError("write one line of text that is not blank")
    return text


def _url_of_input(text: str) -> str:
    if not text:
        raise ValueError("write a url, or a saved version as dataset: or model:")
    return _one_line(text)


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("write text without a NUL character")
    return text


def _fingerprint(text: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", text):
        raise ValueError("write sha256: and 64 digits of 0-9 and a-f, as a run reports them")
    return text


def _no_key(name: str) -> str:
    if re.fullmatch(r"[0-9a-f]{32,}", name):  # as the keys of many services are
        raise ValueError("write the name of a block, not what it holds")
    return name


def _number_as_text(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


SecretName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$"), AfterValidator(_no_key)]
"""What Prefect allows as the name of a block. Who gives the secret itself must not get it back in
a message, so `trainjob.job_problems` tells what is wrong with it."""
Line = Annotated[str, AfterValidator(_one_line)]
InputUrl = Annotated[str, AfterValidator(_url_of_input)]
ContentFingerprint = Annotated[str, AfterValidator(_fingerprint)]
"""What `trainjob.storage.manifest.fingerprint` returns."""
EnvValue = Annotated[
    str,
    StringConstraints(max_length=4096),
    BeforeValidator(_number_as_text),
    AfterValidator(_no_nul),
]


class Spec(BaseModel):
    """What all parts of a job share: frozen, no unknown keys, field docstrings as help."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        # It may be a secret in the wrong place, and everyone reads the tracebacks of a run.
        hide_input_in_errors=True,
        field_title_generator=title,
        json_schema_extra=name_tabs,
    )
