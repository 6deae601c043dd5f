"""The flavors that a platform names and prices, kept where its saved versions are.

In a folder that is the file ``flavors.yaml``, which has a line for each::

    2c4g: {price_per_hour: 0.4}
    8C40G V100*1: {disk_gib: 500, price_per_hour: 12.6}
    lab-a100: {size: 32c256g A100*4, price_per_hour: 40, pool: lab}

A job that names one keeps all of it when it is read: another price tomorrow is not that of the
run. One that is run once more, or by a schedule, is read anew, and gets what is said by then: a
scheduled job is read by its worker, which needs the file, or the server's flavors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field, ValidationError

from trainjob.errors import JobError, Problem
from trainjob.flavors import HOW_TO_WRITE, Flavor
from trainjob.job_problems import problems_of
from trainjob.registry.registry import Place
from trainjob.spec import Line, Spec

FIELD = "resources.flavor"
_MAX_NAMED = 20


class _Entry(Spec):
    """What is said of a flavor beside its name."""

    size: Line | None = None
    disk_gib: int | None = Field(default=None, ge=1)
    price_per_hour: float | None = Field(default=None, ge=0)
    pool: Line | None = None


@dataclass(frozen=True, slots=True)
class FlavorCatalogue:
    """Flavors by what jobs call them.

    Attributes:
        place: Where they are kept, for messages.
        flavors: By their name, or by their size as `_key` writes it.
        broken: What is wrong with the others, by the same.
    """

    place: str
    flavors: Mapping[str, Flavor]
    broken: Mapping[str, tuple[Problem, ...]]

    def find(self, text: str) -> Flavor | None:
        """Return the flavor of this name or size; None: it is none, or not a flavor at all.

        Raises:
            JobError: With the mistakes in what is said of this one.
        """
        if problems := self.broken.get(_key(text)):
            raise JobError(self.place, problems)
        return self.flavors.get(_key(text))

    def names(self, text: str) -> bool:
        """Tell whether there is a flavor of this name or size, be it one with mistakes."""
        return _key(text) in self.flavors or _key(text) in self.broken

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All mistakes in what is kept."""
        return tuple(problem for found in self.broken.values() for problem in found)


def flavors_of(place: Place) -> FlavorCatalogue:
    """Return the flavors that are kept in a place; a mistake in one leaves the others.

    Raises:
        TrainjobError: If what is kept cannot be read at all, or the place does not answer.
    """
    kept = place.flavors()
    flavors: dict[str, Flavor] = {}
    broken: dict[str, tuple[Problem, ...]] = {}
    for name, values in kept.lines:
        key = _key(str(name))
        flavor, problems = _read(str(name), values)
        if key in flavors or key in broken:
            # Of two prices, nobody knows which one is meant.
            flavors.pop(key, None)
            field = (flavor.name or flavor.size) if flavor else str(name)
            again = Problem(field, "a flavor once", "another spelling of it", "remove one of them")
            broken[key] = (*broken.get(key, ()), *problems, again)
        elif flavor is None:
            broken[key] = tuple(problems)
        else:
            flavors[key] = flavor
    return FlavorCatalogue(kept.source, flavors, broken)


def resolve_flavor(data: Any, place: Place) -> tuple[Any, tuple[Problem, ...]]:
    """Put what the catalogue says in place of the text of a job's flavor.

    Args:
        data: Keys and values of a job; left unchanged.
        place: Where the flavors are kept.

    Returns:
        The job, without the flavor if that is none, and why not.
    """
    resources = data.get("resources") if isinstance(data, dict) else None
    if not isinstance(resources, dict) or not isinstance(resources.get("flavor"), str):
        return data, ()
    text = resources["flavor"]
    rest = {key: value for key, value in resources.items() if key != "flavor"}
    try:
        catalogue = flavors_of(place)
        flavor = catalogue.find(text) or Flavor.parse(text)
    except JobError as error:
        found = f"a mistake in {error.source!r}: {error.problems[0]}"
        problem = Problem(FIELD, f"the flavor {text!r}", found, "correct it there")
    except ValueError:
        asked = f"{HOW_TO_WRITE}, or the name of a flavor in {catalogue.place!r}"
        problem = Problem(FIELD, asked, f"{text!r}{_others(catalogue)}", "change it")
    else:
        return {**data, "resources": {**rest, "flavor": flavor.model_dump(mode="json")}}, ()
    return {**data, "resources": rest}, (problem,)


def refresh_flavor(data: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Put what the catalogue says now in place of what it said of a job's flavor before.

    Args:
        data: Keys and values of a job; left unchanged.
        place: Where the flavors are kept. One that is not there, by its name or else its size,
            stays as the job has it.

    Raises:
        TrainjobError: As `flavors_of` and `FlavorCatalogue.find` do.
    """
    resources = data.get("resources")
    given = resources.get("flavor") if isinstance(resources, dict) else None
    if not isinstance(resources, dict) or not isinstance(given, dict):
        return dict(data)  # a text is looked up when the job is read
    try:
        before = Flavor.model_validate(given)
    except ValidationError:  # told when the job is read
        return dict(data)
    now = flavors_of(place).find(before.name or before.size)
    flavor = given if now is None else now.model_dump(mode="json")
    return {**data, "resources": {**resources, "flavor": flavor}}


def _read(name: str, values: Any) -> tuple[Flavor | None, list[Problem]]:
    """Return the flavor that one line describes, or what is wrong with it."""
    given = {"size": values} if isinstance(values, str) else {} if values is None else values
    if not isinstance(given, dict):
        do = "write {price_per_hour: 0.4}, or {size: 2c4g} for another name"
        return None, [Problem(name, "keys and values", repr(values), do)]
    try:
        entry = _Entry.model_validate(given)
    except ValidationError as error:
        found = problems_of(error, _Entry, given)
        return None, [replace(problem, field=f"{name}.{problem.field}") for problem in found]
    size = name if entry.size is None else entry.size
    try:
        flavor = Flavor.parse(size)
    except ValueError:
        return None, [Problem(f"{name}.size", HOW_TO_WRITE, repr(size), "give its size")]
    said = entry.model_dump(exclude={"size"})
    own_name = None if _key(name) == _key(size) else name
    return flavor.model_copy(update={"name": own_name, **said}), []


def _key(text: str) -> str:
    """Return a size in one spelling, and any other text as it is."""
    try:
        return Flavor.parse(text).size.lower()
    except ValueError:
        return text


def _others(catalogue: FlavorCatalogue) -> str:
    names = [flavor.name or flavor.size for flavor in catalogue.flavors.values()]
    known = f", and only {_listed(names)} there" if names else ", and no flavor there"
    broken = f", and {_listed(list(catalogue.broken))} with a mistake" if catalogue.broken else ""
    return known + broken


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{', '.join(names[:_MAX_NAMED])}{more}"
