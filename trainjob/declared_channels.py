"""The inputs and outputs that an algorithm declares, and what it takes as such.

Part of `trainjob.algorithm`; `trainjob.registry.matching` compares the channels of jobs with them.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from trainjob.spec import Line, Name, Spec

_NO_CARBONDATA = (
    "write a format that is read here (CarbonData: export it to files such as Parquet or CSV)"
)


def _as_one_word(text: object) -> object:
    return "-".join(re.split("[ _-]+", text.strip(" ").lower())) if isinstance(text, str) else text


def _readable_format(text: str) -> str:
    if re.sub(r"[\W_]", "", text).lower() == "carbondata":
        raise ValueError(_NO_CARBONDATA)
    return text


Labelling = Annotated[Line, BeforeValidator(_as_one_word)]
"""A labelling type in any words, compared in small letters with - between them: the products name
theirs `image-classification`, `object-detection`, `text-classification`, and many more."""
DataFormat = Annotated[Line, AfterValidator(_readable_format)]
"""ModelArts, creating an algorithm: the format Default (a manifest), CarbonData, or both."""


class DeclaredInput(Spec):
    """An input that an algorithm reads."""

    name: Name
    """Name of the channel in jobs: the argument that the script parses, such as `data_url`."""

    label: str = "Data Source"
    """What people call it."""

    required: bool = True
    """Whether a job must give it."""

    sources: list[Literal["storage", "dataset", "model"]] = Field(
        default=["storage", "dataset", "model"], min_length=1
    )
    """Where its data may come from: a url, a saved dataset, a saved model."""

    labelling: Labelling | None = None
    """The only labelling type that a saved dataset may have, such as `image-classification`."""

    format: DataFormat | None = None
    """The only format that a saved dataset may have."""

    is_split: bool | None = None
    """Whether a saved dataset must be split into training and validation data, or must not be;
    absent: both are right."""


class DeclaredOutput(Spec):
    """An output that an algorithm writes."""

    name: Name
    """Name of the channel in jobs: the argument that the script parses, such as `train_url`."""

    label: str = "Output Data"
    """What people call it."""

    required: bool = True
    """Whether a job must give it."""
