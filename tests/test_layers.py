"""Imports go one way, and the heavy packages stay where they belong."""

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("deployments", "flows", "tasks", "blocks", "trainjob")
# What user scripts import to save their state; no other file of ours imports them.
FOR_USER_SCRIPTS = {
    f"checkpoint{part}.py" for part in ("", "_plain", "_ranks", "_resume", "_sharded")
}
FILES = sorted(file for layer in LAYERS for file in (ROOT / layer).rglob("*.py"))


def imports_of(file: Path) -> set[str]:
    return {module.partition(".")[0] for module in modules_of(file)}


@functools.cache
def modules_of(file: Path) -> frozenset[str]:
    """Return the modules that a file imports, in full: `from a import b` may mean a or a.b."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def is_for_user_scripts(file: Path) -> bool:
    return file.parent.name == "trainjob" and file.name in FOR_USER_SCRIPTS


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_imports_go_down_only() -> None:
    found = {}
    for file in FILES:
        layer = LAYERS.index(file.relative_to(ROOT).parts[0])
        found[name_of(file)] = imports_of(file) & set(LAYERS[:layer])

    assert_none(found)


def test_the_core_imports_neither_prefect_nor_torch_nor_mpi() -> None:
    found = {}
    for file in (ROOT / "trainjob").rglob("*.py"):
        # bootstrap.py finalises what the script itself imported, through sys.modules.
        allowed = {"torch"} if is_for_user_scripts(file) else set()
        found[name_of(file)] = imports_of(file) & {"prefect", "torch", "mpi4py"} - allowed

    assert_none(found)


def test_the_flow_process_never_imports_torch() -> None:
    heavy = {"torch", "mpi4py"}
    heavy |= {f"trainjob.{Path(name).stem}" for name in FOR_USER_SCRIPTS}
    of_flows = [file for file in FILES if not is_for_user_scripts(file)]

    assert_none({name_of(f): (imports_of(f) | modules_of(f)) & heavy for f in of_flows})


def assert_none(found: dict[str, set[str]]) -> None:
    """See that at least one file was looked at, and that nothing was found in any."""
    assert found
    assert {file: modules for file, modules in found.items() if modules} == {}


def test_saving_needs_torch_and_the_standard_library_only() -> None:
    files = [ROOT / "trainjob" / name for name in (*FOR_USER_SCRIPTS, "checkpoint_folder.py")]

    # checkpoint_resume.py imports numpy where the saved state is of numpy.
    allowed = {"trainjob", "torch", "numpy"} | sys.stdlib_module_names
    assert [name_of(file) for file in files if imports_of(file) - allowed] == []
    needed = {module for file in files for module in modules_of(file)}
    ours = {"trainjob.checkpoint", "trainjob.errors", "trainjob.progress"}
    assert [
        name for name in needed if name.startswith("trainjob.") and not name.startswith(tuple(ours))
    ] == []


BESIDE_RANKS = (
    "bootstrap",
    "folder_growth",
    "liveness",
    "memory_watch",
    "processes",
    "rank_files",
    "stacks",
    "start",
    "supervisor",
    "user_script",
)


@pytest.mark.parametrize("name", BESIDE_RANKS)
def test_what_runs_beside_a_rank_needs_the_standard_library_only(name: str) -> None:
    file = ROOT / "trainjob" / "launch" / f"{name}.py"

    # bootstrap.py goes on in user_script.py, which is in this list.
    assert imports_of(file) - {"trainjob"} <= sys.stdlib_module_names


def test_checking_a_job_imports_no_prefect() -> None:
    code = "import sys, flows.__main__; print('prefect' in sys.modules, 'torch' in sys.modules)"

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split() == ["False", "False"]
