"""Which saved versions a job names that was read before, and whether they are what it has.

Such a job has the url and the fingerprint of each version beside its name, and of a saved algorithm
everything. It needs no registry; but where the registry has the version, the two have to be the
same, so that no run names a version that it did not use. Called by `trainjob.registry.references`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, cast

from pydantic import Field, TypeAdapter, ValidationError

from trainjob.algorithm import CommandAlgorithm, ScriptAlgorithm
from trainjob.errors import Problem, TrainjobError
from trainjob.registry.records import (
    Kind,
    Record,
    Reference,
    RegistryError,
    SavedAlgorithm,
    SavedDataset,
    SavedModel,
)
from trainjob.registry.registry import Registry

_ALGORITHM: TypeAdapter[ScriptAlgorithm | CommandAlgorithm] = TypeAdapter(
    Annotated[ScriptAlgorithm | CommandAlgorithm, Field(discriminator="kind")]
)
_DECLARED = ("inputs", "outputs")


class Claims:
    """Compares what a job that was read before says with what is saved.

    Args:
        registry: Where the versions are.
        must_exist: Whether a version that is not there is a problem. A person has written the job;
            a worker may run one whose version was deleted meanwhile.
    """

    def __init__(self, registry: Registry, *, must_exist: bool) -> None:
        self._registry = registry
        self._must_exist = must_exist
        self.problems: list[Problem] = []

    def algorithm(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the algorithm of a job with the channels that are declared where it is saved."""
        field, text = "algorithm.registered", str(given["registered"])
        saved = self._record("algorithm", text, field, "write algorithm: NAME, or remove it")
        if saved is None:
            return dict(given)
        wanted = cast(SavedAlgorithm, saved).in_a_job
        others = _other_keys(given, wanted)
        if others:
            asked, found = f"the saved algorithm {text!r}", f"another {', '.join(others)} beside it"
            do = f"write algorithm: {text} alone, or remove registered"
            self.problems.append(Problem(field, asked, found, do))
            return dict(given)
        declared = {key: wanted.model_dump(mode="json")[key] for key in _DECLARED}
        return {**given, **declared}

    def channel(self, kind: Kind, channel: Mapping[str, Any], field: str) -> Record | None:
        """Return the version that an input names; None if it is not there.

        Args:
            kind: What it names.
            channel: Its keys and values, with url and expect.
            field: The input as messages call it.
        """
        text, field = str(channel[kind]), f"{field}.{kind}"
        do = "remove url and expect, or write NAME@3"
        record = self._record(kind, text, field, do)
        if record is None:
            return None
        saved = cast(SavedDataset | SavedModel, record).fingerprint
        if saved != channel["expect"]:
            found = f"{channel['expect']} as expect beside it, and {saved} saved as {record}"
            do = "remove url and expect, or name the version that they are of"
            self.problems.append(Problem(field, repr(text), found, do))
        return record

    def _record(self, kind: Kind, text: str, field: str, do: str) -> Record | None:
        try:
            reference = Reference.parse(text)
            if reference.version is None:
                asked = "the version whose url and expect are given"
                if kind == "algorithm":
                    asked = "the version whose values are given"
                self.problems.append(Problem(field, asked, repr(text), do))
                return None
            if self._must_exist:
                return self._registry.find(kind, reference)
        except RegistryError as error:
            self.problems.append(error.problem(field))
            return None
        return self._if_there(kind, reference)

    def _if_there(self, kind: Kind, reference: Reference) -> Record | None:
        try:
            found = self._registry.survey(kind, reference.name, reference.version)
        except TrainjobError as error:
            if not error.retryable:
                raise
            return None  # the place is away, and the job can do without it
        return next(iter(found.records), None)


def _other_keys(given: Mapping[str, Any], saved: ScriptAlgorithm | CommandAlgorithm) -> list[str]:
    """Return which keys of an algorithm are not as they are saved."""
    try:
        read = _ALGORITHM.validate_python({"kind": "script", **given})
    except ValidationError:
        return []  # told where the job is read
    has, wants = read.model_dump(mode="json"), saved.model_dump(mode="json")
    # A job that was read before channels were kept has none.
    left_out = {"registered", *(key for key in _DECLARED if has[key] is None)}
    keys = [*has, *(key for key in wants if key not in has)]
    return [key for key in keys if key not in left_out and has.get(key) != wants.get(key)]
