"""Small wheels and source trees for tests of environments, which need no network."""

import textwrap
import zipfile
from pathlib import Path


def make_wheel(folder: Path, name: str, version: str, body: str = "", entry: str = "") -> Path:
    """Write a wheel whose module has `body`, and whose command `name` calls `entry` of it."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n{body}",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if entry:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{name} = {name}:{entry}\n"
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def make_source(folder: Path, act: str) -> None:
    """Write a source tree, named like its folder, whose build does `act`.

    Args:
        folder: Where it is made.
        act: Statements; they may set `text`, what the module that is built says.
    """
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    backend = _BACKEND.replace("NAME", folder.name).replace("    ACT", textwrap.indent(act, "    "))
    (folder / "backend.py").write_text(backend)


def make_nosy_source(folder: Path, secret: Path) -> None:
    """Write a source tree whose build looks for a secret, and says in its module what it saw."""
    look = f"""\
        try:
            seen = pathlib.Path({str(secret)!r}).read_text()
        except OSError as error:
            seen = type(error).__name__
        names = [name for name in os.environ if name.startswith("AWS_")]
        text = f"seen, names = {{seen!r}}, {{names!r}}"
        """
    make_source(folder, textwrap.dedent(look))


_BACKEND = """\
import os, pathlib, zipfile

def build_wheel(directory, settings=None, metadata=None):
    text = ""
    ACT
    name, info = "NAME-1.0-py3-none-any.whl", "NAME-1.0.dist-info"
    with zipfile.ZipFile(pathlib.Path(directory, name), "w") as archive:
        archive.writestr("NAME.py", text)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: NAME\\nVersion: 1.0\\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return name
"""
