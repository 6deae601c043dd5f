"""One copy by one tool: how long it took, what it used, and whether it is exact."""

import filecmp
import os
import shutil
import subprocess
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

from storage_bed import Bed
from storage_tools import Operation, Tool, our_command
from usage import used_by

BUCKET = "s3://bench"

_MANY_FILES = 1000
"""So many files of a run stay until the end. For minutes after many were deleted, ext4 goes past
their inodes one by one for each file that is made (recently_deleted in fs/ext4/ialloc.c), which
would count as the work of the next tool: a quarter of what 10,000 small files took here."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is copied, and in which direction.

    Attributes:
        name: What the table calls it.
        operation: What is done with it.
        num_files: How many files.
        size_bytes: Of each.
        way: How the store is reached.
        is_archive: Whether the store has all of it as one tar, which a job unpacks.
    """

    name: str
    operation: Operation
    num_files: int
    size_bytes: int
    way: str = "http"
    is_archive: bool = False

    @property
    def tree(self) -> str:
        """The name of the tree, which workloads share."""
        return f"{self.num_files}x{self.size_bytes}"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a tool; times in seconds, the memory is the most of any one of its processes."""

    wall_s: float
    cpu_s: float
    server_cpu_s: float
    peak_mb: float
    problem: str = ""
    output: str = ""


class Runs:
    """Makes trees, copies them, and looks at what became of them.

    Args:
        folder: Where everything goes.
        bed: The store.
    """

    def __init__(self, folder: Path, bed: Bed) -> None:
        self._folder = folder
        self._bed = bed
        self._count = 0
        self._prepared: set[str] = set()

    def prepare(self, workload: Workload) -> None:
        """Make the tree of a workload, here and in the store."""
        tree = self._tree(workload)
        if not tree.exists():
            _write_tree(tree, workload.num_files, workload.size_bytes)
        sent = _tar_of(tree) if workload.is_archive else tree
        url = self.url(workload)
        if url in self._prepared:
            return
        made = self.run(our_command("put", url, sent), "http")
        if made.problem:
            raise RuntimeError(made.problem)
        self._prepared.add(url)

    def measure(self, workload: Workload, tool: Tool) -> Run:
        """Let a tool do the work in a place of its own."""
        self._count += 1
        place = self._folder / f"run-{self._count}"
        place.mkdir()
        os.sync()  # what runs before left to be written is not part of this one
        # A bucket of its own is removed with all that it holds.
        url = self.url(workload) if workload.operation != "up" else f"s3://up-{self._count}/tree/"
        folder = self._tree(workload) if workload.operation == "up" else place / "target"
        if workload.operation == "up":
            self.run(our_command("make", url, place), "http")
        command = tool.command(workload.operation, url, folder)
        run = self.run(command, workload.way, {"TRAINJOB_CACHE_DIR": str(place / "cache")})
        problem = run.problem or self._difference(workload, url, folder, run.output)
        if workload.operation == "up":
            self.run(our_command("drop", url, place), "http")
        if workload.num_files < _MANY_FILES:
            _remove(place)
        return Run(run.wall_s, run.cpu_s, run.server_cpu_s, run.peak_mb, problem, run.output)

    def run(self, command: list[str], way: str, more: dict[str, str] | None = None) -> Run:
        """Run a command and wait for its end."""
        log = self._folder / "run.log"
        server_s = used_by(self._bed.pid)[self._bed.pid].cpu_s
        begun = time.perf_counter()
        with log.open("wb") as output:
            env = self.environment(way) | (more or {})
            process = subprocess.Popen(
                command, env=env, stdout=output, stderr=output, cwd=self._folder
            )
            _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        text = log.read_text(errors="replace")
        return Run(
            wall_s,
            usage.ru_utime + usage.ru_stime,
            used_by(self._bed.pid)[self._bed.pid].cpu_s - server_s,
            usage.ru_maxrss * 1024 / 1e6,
            f"exit code {process.returncode}: {text[-500:]}" if process.returncode else "",
            text,
        )

    def environment(self, way: str) -> dict[str, str]:
        """Return the environment of a tool."""
        return self._bed.environment(way) | {"PYTHONPATH": str(Path(__file__).parent.parent)}

    def place(self, name: str) -> Path:
        """Return a new folder."""
        self._count += 1
        place = self._folder / f"{name}-{self._count}"
        place.mkdir()
        return place

    def url(self, workload: Workload) -> str:
        """Return where the tree of a workload lies in the store."""
        return f"{BUCKET}/{workload.tree}{'.tar' if workload.is_archive else ''}/"

    def is_same(self, workload: Workload, folder: Path) -> bool:
        """Say whether a folder holds the tree of a workload, byte for byte."""
        return not _differences(self._tree(workload), folder.resolve())

    def _difference(self, workload: Workload, url: str, folder: Path, output: str) -> str:
        if workload.operation == "down":
            return "" if self.is_same(workload, folder) else "the copy is not exact"
        if workload.operation == "up":
            return self.run(our_command("same", url, folder), "http").problem
        has_count = str(workload.num_files) in output
        is_whole = has_count or output.count("\n") == workload.num_files
        return "" if is_whole else "the listing is not whole"

    def _tree(self, workload: Workload) -> Path:
        return self._folder / "trees" / workload.tree


def _write_tree(tree: Path, num_files: int, size_bytes: int) -> None:
    """Write files of random content, at most 1,000 a folder."""
    for number in range(num_files):
        file = tree / f"{number // 1000:03}" / f"{number:06}.bin"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as output:
            for start in range(0, size_bytes, 1 << 20):
                output.write(os.urandom(min(1 << 20, size_bytes - start)))


def _tar_of(tree: Path) -> Path:
    """Return a folder that holds nothing but a tar of what is in `tree`; it is made if need be."""
    folder = tree.with_name(f"{tree.name}.tar")
    if not folder.exists():
        folder.mkdir()
        with tarfile.open(folder / "data.tar", "w") as tar:
            for child in sorted(tree.iterdir()):
                tar.add(child, arcname=child.name)
    return folder


def _differences(expected: Path, found: Path) -> list[str]:
    """Return what differs between two folders, every byte compared."""
    here = {str(file.relative_to(expected)) for file in expected.rglob("*") if file.is_file()}
    there = {str(file.relative_to(found)) for file in found.rglob("*") if file.is_file()}
    _, wrong, unread = filecmp.cmpfiles(expected, found, here & there, shallow=False)
    return sorted((here ^ there) | set(wrong) | set(unread))


def _remove(folder: Path) -> None:
    """Remove a folder, read-only ones in it too."""
    for path, _, _ in os.walk(folder):
        Path(path).chmod(0o755)
    shutil.rmtree(folder)
