"""Habits of scripts that go wrong here without an error message of their own: all are warnings.

A channel that nothing reads, ``--local_rank`` that no launcher gives any more, and ``cuda`` written
into a script whose job is for another device.
"""

import ast
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeGuard

from trainjob.check.arguments import Given
from trainjob.check.declared_arguments import Declared, is_parse_call
from trainjob.check.script_modules import Module, last_name
from trainjob.errors import Problem
from trainjob.job import TrainingJob
from trainjob.parameters import channel_env_name
from trainjob.profiles import PROFILES, place_of

_READS_ALL = re.compile(
    r"TRAINJOB_PARAMS|TRAINJOB_HP|sys\.argv|\bvars\(|__dict__|_get_kwargs|getattr\(|\bargv\b"
)
_ASKS_FOR_DEVICE = re.compile(
    r"is_available|device_count|no.?cuda|use.?cuda|use.?gpu|CUDA_VISIBLE_DEVICES|torch_npu|\.npu\b"
)
_BRANCHES = (ast.If, ast.IfExp, ast.Try, ast.While, ast.BoolOp, ast.Match)


def habit_problems(
    job: TrainingJob, modules: Sequence[Module], declared: Declared, given: Mapping[str, Given]
) -> list[Problem]:
    """Return what in the script does not go well with the job.

    Args:
        job: The job.
        modules: The boot file and the modules of the code that it imports.
        declared: What they declare to argparse.
        given: What the job gives the script.
    """
    return [
        *_unread_channels(job, modules, declared, given),
        *_ignored_hyperparameters(modules, declared, given),
        *_local_rank(job, modules, declared, given),
        *_fixed_cuda(job, modules),
    ]


def _unread_channels(
    job: TrainingJob, modules: Sequence[Module], declared: Declared, given: Mapping[str, Given]
) -> Iterator[Problem]:
    text = "\n".join(module.text for module in modules)
    if _READS_ALL.search(text):
        return
    for name, folder in _channels(job):
        if folder is not None and (folder in text or _own_part(folder, name) in text):
            continue
        words = {name, name.replace("-", "_"), channel_env_name(name)}
        words |= {a.name for a in declared.arguments if f"--{name}" in a.flags}
        num_mentions = sum(len(re.findall(rf"\b{re.escape(word)}\b", text)) for word in words)
        declaring = sum(f"--{name}" in argument.flags for argument in declared.arguments)
        if num_mentions > declaring or name not in given:
            continue
        found = "no place in the script that reads it" + (" beyond its declaration" * declaring)
        do = f"read --{name} or ${channel_env_name(name)}, or remove the channel"
        yield Problem(
            *(given[name].field, f"the channel {name!r}", found, do),
            id="script-channel-not-read",
            level="warning",
        )


def _channels(job: TrainingJob) -> Iterator[tuple[str, str | None]]:
    """Yield the channels of a job, and where scripts of its product find each without asking."""
    profile = PROFILES[job.profile]
    inputs = [(i, channel.name, profile.inputs) for i, channel in enumerate(job.inputs)]
    outputs = [(i, channel.name, profile.outputs) for i, channel in enumerate(job.outputs)]
    for index, name, places in (*inputs, *outputs):
        place = place_of(places, name)
        path = place.path if place else None
        yield name, path and path.format(name=name, index=index)


def _own_part(folder: str, name: str) -> str:
    """Return the part of a path that a script joins to another, if the channel alone has it."""
    last = folder.rpartition("/")[2]
    return last if name in last else folder


def _ignored_hyperparameters(
    modules: Sequence[Module], declared: Declared, given: Mapping[str, Given]
) -> Iterator[Problem]:
    """Find what ``parse_known_args`` throws away without a word."""
    text = "\n".join(module.text for module in modules)
    if not declared.accepts_unknown or declared.doubts or _READS_ALL.search(text):
        return
    if any(_keeps_unknown(module.tree) for module in modules):
        return
    flags = [flag for argument in declared.arguments for flag in argument.flags]
    for name, value in given.items():
        is_short_for_one = any(flag.startswith(f"--{name}") for flag in flags)
        is_mentioned = re.search(rf"\b{re.escape(name)}\b", text) is not None
        is_hyperparameter = value.field.startswith("hyperparameters")
        if is_hyperparameter and not is_short_for_one and not is_mentioned:
            found = "no such argument in the script, which ignores what it does not declare"
            yield Problem(
                *(value.field, f"--{name}", found, "declare it, or remove the hyperparameter"),
                id="script-ignores-argument",
                level="warning",
            )


def _keeps_unknown(tree: ast.Module) -> bool:
    """Tell whether the words that ``parse_known_args`` leaves may be used."""
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    thrown_away = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and ast.unparse(node.slice) == "0":
            thrown_away.add(node.value)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            names = node.targets[0].elts
            if len(names) == 2 and isinstance(names[1], ast.Name) and names[1].id not in read:
                thrown_away.add(node.value)
    return any(
        is_parse_call(node) and last_name(node.func) == "parse_known_args"
        for node in set(ast.walk(tree)) - thrown_away
        if isinstance(node, ast.Call)
    )


def _local_rank(
    job: TrainingJob, modules: Sequence[Module], declared: Declared, given: Mapping[str, Given]
) -> Iterator[Problem]:
    if job.world_size == 1 or "local_rank" in given or "local-rank" in given:
        return
    if any("LOCAL_RANK" in module.text for module in modules):
        return
    for argument in declared.arguments:
        if {"--local_rank", "--local-rank"} & set(argument.flags) and not argument.is_required:
            found = f"--local_rank ({argument.where}), which no launcher gives here"
            yield Problem(
                *("launcher", f"{job.launcher} with {job.world_size} ranks", found),
                "read LOCAL_RANK of the environment, which every launcher sets",
                id="script-local-rank",
                level="warning",
            )
            return


def _fixed_cuda(job: TrainingJob, modules: Sequence[Module]) -> Iterator[Problem]:
    if job.resources.device == "cuda":
        return
    if any(_ASKS_FOR_DEVICE.search(module.text) for module in modules):
        return
    device = job.resources.device
    for module in modules:
        fixed = _fixed_names(module.tree)
        for node in _without_branches(module.tree):
            if _is_cuda(node, fixed):
                yield Problem(
                    "resources.device",
                    repr(device),
                    f"{ast.unparse(node)} in {module.path}:{node.lineno}",
                    f"let the script choose, or use device cuda: {device} has none",
                    id="script-fixed-device",
                    level="warning",
                )
                return


def _fixed_names(tree: ast.Module) -> set[str]:
    """Return the names that are cuda and nothing else, wherever they are in a module."""
    fixed: set[str] = set()
    others: set[str] = set()
    constants: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and _says_cuda(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            constants |= {target for target in targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                (fixed if node in constants else others).add(name)
            case ast.arg(arg=name):
                others.add(name)
            case ast.alias():
                others.add(node.asname or node.name.partition(".")[0])
            case _:
                pass
    return fixed - others


def _says_cuda(node: ast.AST | None) -> bool:
    value = node.value if isinstance(node, ast.Constant) else None
    return isinstance(value, str) and value.startswith("cuda")


def _is_cuda(node: ast.AST, fixed: Collection[str]) -> TypeGuard[ast.Call]:
    """Tell whether a node moves something to cuda: ``x.cuda()``, ``x.to("cuda")`` and so on.

    Args:
        node: Any node.
        fixed: The names that mean cuda.
    """
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    if node.func.attr == "cuda" and not node.args:
        return True
    named = [k.value for k in node.keywords if k.arg in ("device", "map_location")]
    values = [*named, *(node.args if node.func.attr in ("to", "device", "set_device") else [])]
    return any(_says_cuda(v) or (isinstance(v, ast.Name) and v.id in fixed) for v in values)


def _without_branches(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that are under no condition of their function."""
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop(0)
        yield node
        left += (
            child
            for child in ast.iter_child_nodes(node)
            if not isinstance(child, _BRANCHES) or _is_main(child)
        )


def _is_main(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
