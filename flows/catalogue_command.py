"""``python -m flows flavor | engine list``: the machines of the platform, the engines of products.

Nothing is printed here: every command returns an answer, which `flows.__main__` shows.
"""

import argparse
from typing import Any, cast, get_args

from flows.cache_command import Answer
from flows.registry_place import chosen_registry
from flows.text_table import table
from trainjob.engines import CatalogueEngine, Engine, catalogue, differences, installed
from trainjob.flavor_catalogue import flavors_of
from trainjob.flavors import Flavor
from trainjob.launch.launch import Device
from trainjob.registry.records import Reference, SavedAlgorithm
from trainjob.values import counted

_FLAVOR_HEAD = ("FLAVOR", "SIZE", "DEVICE", "DISK", "PRICE PER HOUR", "POOL")
_ENGINE_HEAD = ("ENGINE", "PRODUCT", "FRAMEWORK", "PYTHON", "HERE")


def add_catalogue_commands(commands: Any) -> list[argparse.ArgumentParser]:
    """Add ``flavor`` and ``engine`` to the command line, and return their parsers.

    Args:
        commands: What ``add_subparsers`` of the parser returned. ``answer`` of its arguments will
            be a function that takes them and returns an `Answer`.
    """
    parsers = []
    described = {
        "flavor": "kinds of machine of this platform",
        "engine": "frameworks that products offer, and what of them is installed here",
    }
    for name, what in described.items():
        parser = commands.add_parser(name, help=what)
        actions = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
        listed = actions.add_parser("list", help="what there is")
        listed.add_argument("--json", action="store_true", help="print one JSON object")
        listed.set_defaults(answer=_list_flavors if name == "flavor" else _list_engines)
        if name == "engine":
            listed.add_argument("--old", action="store_true", help="also what products hide")
        else:
            of_device = "those with these alone; cpu: those without cards"
            listed.add_argument("--device", choices=get_args(Device), help=of_device)
            of_algorithm = "those that this saved algorithm can use"
            listed.add_argument("--algorithm", metavar="NAME[@VERSION]", help=of_algorithm)
        parsers.append(parser)
    return parsers


def _list_flavors(arguments: argparse.Namespace) -> Answer:
    registry = chosen_registry()
    found = flavors_of(registry.place)
    flavors = list(found.flavors.values())
    if arguments.device:
        flavors = [f for f in flavors if (f.device or "cpu") == arguments.device]
    if arguments.algorithm:
        saved = registry.find("algorithm", Reference.parse(arguments.algorithm))
        constraints = cast("SavedAlgorithm", saved).definition.constraints
        flavors = [f for f in flavors if constraints.allow(f)]
    lines = table([_FLAVOR_HEAD, *map(_flavor_row, flavors)]) if flavors else []
    broken = [str(problem) for problem in found.problems]
    lines += [f"broken: {text}" for text in broken]
    of_all = f" of {len(found.flavors)}" if len(flavors) < len(found.flavors) else ""
    lines.append(f"{counted(len(flavors), 'flavor')}{of_all} in {found.place}")
    data = [_facts(flavor) for flavor in flavors]
    return Answer("\n".join(lines), {"flavors": data, "broken": broken})


def _facts(flavor: Flavor) -> dict[str, Any]:
    """Return every field, which a flavor that is only a size would not write."""
    fields = {name: getattr(flavor, name) for name in Flavor.model_fields}
    return fields | {"size": flavor.size, "device": flavor.device}


def _flavor_row(flavor: Flavor) -> tuple[str, ...]:
    disk = "-" if flavor.disk_gib is None else f"{flavor.disk_gib} GiB"
    price = "-" if flavor.price_per_hour is None else f"{flavor.price_per_hour:g}"
    pool = flavor.pool or "-"
    return flavor.name or flavor.size, flavor.size, flavor.device or "-", disk, price, pool


def _list_engines(arguments: argparse.Namespace) -> Answer:
    known = catalogue()
    shown = [entry for entry in known if arguments.old or not entry.is_old]
    data = [_engine(entry) for entry in shown]
    rows = [(d["name"], d["product"], d["framework"], d["python"], d["here"]) for d in data]
    lines = table([_ENGINE_HEAD, *([cell or "-" for cell in row] for row in rows)])
    hidden = len(known) - len(shown)
    lines.append(counted(len(shown), "engine") + (f"; {hidden} more with --old" if hidden else ""))
    return Answer("\n".join(lines), {"engines": data})


def _engine(entry: CatalogueEngine) -> dict[str, Any]:
    engine = Engine.parse(entry.name)
    framework = " ".join(filter(None, (engine.framework, engine.version)))
    return {
        "name": entry.name,
        "product": entry.product,
        "framework": framework or None,
        "python": engine.python,
        "device": engine.device,
        "is_old": entry.is_old,
        "has_auto_search": entry.has_auto_search,
        "here": _here(engine),
    }


def _here(engine: Engine) -> str | None:
    """Say what this Python has in place of an engine."""
    if engine.framework is None:
        return None
    found = installed(engine.framework)
    if found is None:
        return "not installed"
    return ", ".join(differences(engine, found)) or "the same"
