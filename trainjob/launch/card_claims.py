"""The claims of runs to cards and cores of this machine, as files that the kernel frees (flock(2)).

A claim is a file in a folder that all runs of the machine share. It says what a run wants and what
it got, and it counts as long as a process has it open and locked: however that process ends, the
claim ends with it. Used by `trainjob.launch.card_leases` and
`trainjob.launch.core_leases`, which decide who gets what.
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainjob.errors import LaunchError

FOLDER_ENV = "TRAINJOB_CARDS_DIR"
"""Names the folder of the claims; absent: one for all users of the machine."""

# Neither in a home nor on a disk that machines share: cards belong to everybody on one machine.
_FOLDER = Path("/tmp/trainjob-cards")  # noqa: S108 - nothing in it is secret, nor trusted for more
_FOLDER_MODE = 0o1777
_FILE_MODE = 0o644
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Claim:
    """What a run wants, and what it has.

    Attributes:
        run: Its id.
        pid: The process that made the claim.
        count: How many cards or cores it wants.
        among: Names of those that would do.
        has: Names of those that it has; none while it waits.
    """

    run: str
    pid: int
    count: int
    among: tuple[str, ...]
    has: tuple[str, ...] = ()


class Claims:
    """The claims of this machine.

    Args:
        patience_s: How long to wait while another process has them to itself, which is short unless
            that is stopped; None: for ever.

    Raises:
        LaunchError: By every method, if the folder cannot be used.
    """

    def __init__(self, patience_s: float | None = None) -> None:
        self._patience_s = patience_s
        chosen = os.environ.get(FOLDER_ENV)
        self._folder = Path(chosen).absolute() if chosen else _FOLDER

    @contextmanager
    def held(self, claim: Claim) -> Iterator["HeldClaim"]:
        """Have `claim` among the others until the block ends, after those that are there."""
        with self.alone():
            number = max(self._numbers(), default=0) + 1
            descriptor = os.open(self._file(number), os.O_RDWR | os.O_CREAT | os.O_EXCL, _FILE_MODE)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            held = HeldClaim(number, descriptor, claim)
            with self.alone():
                os.fchmod(descriptor, _FILE_MODE)  # whatever the umask: others' runs have to read
                held.write()
            yield held
        finally:
            os.close(descriptor)
            # It may still be that of a supervisor; then who comes next removes it.
            with suppress(LaunchError), self.alone():
                self.living()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other process look at the claims in this block, which has to be short."""
        with self._errors():
            self._make_folder()
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._lock(folder)
                yield
            finally:
                os.close(folder)

    def _lock(self, folder: int) -> None:
        if self._patience_s is None:
            fcntl.flock(folder, fcntl.LOCK_EX)
            return
        give_up_at = time.monotonic() + self._patience_s
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    raise TimeoutError(errno.ETIMEDOUT, "that it is locked for long") from None
                time.sleep(_POLL_S)
            else:
                return

    def living(self) -> dict[int, Claim]:
        """Return the claims that count by their numbers, in order, and remove those that are void.

        To be called in `alone`.
        """
        found = {}
        for number in self._numbers():
            with suppress(OSError, ValueError, TypeError):  # not ours, or not to be read by us
                claim = self._read_or_remove(self._file(number))
                if claim is not None:
                    found[number] = claim
        return found

    def _read_or_remove(self, file: Path) -> Claim | None:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, encoding="utf-8") as opened:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _claim_of(json.load(opened))
            file.unlink()
            return None

    def _numbers(self) -> list[int]:
        stems = (file.stem for file in self._folder.glob("*.claim"))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:08d}.claim"

    def _make_folder(self) -> None:
        with suppress(FileExistsError):
            self._folder.mkdir(parents=True)
            self._folder.chmod(_FOLDER_MODE)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LaunchError(
                f"asked for a claim to cards or cores in {str(self._folder)!r}, found "
                f"{error.strerror}; let every user who trains on this machine write there (mode "
                f"1777), or have all of them set {FOLDER_ENV} to another folder of this machine"
            ) from error


def _claim_of(said: dict[str, Any]) -> Claim:
    """Return what a claim says; that of another version of ours may say more, or less."""
    return Claim(
        run=str(said.get("run", "of another version")),
        pid=int(said.get("pid", 0)),
        count=int(said.get("count", 0)),
        among=tuple(said.get("among", ())),
        has=tuple(said.get("has", ())),
    )


@dataclass
class HeldClaim:
    """A claim that counts, since this process holds it.

    Attributes:
        number: Its place among all claims.
        descriptor: Of its file; a child process that inherits it holds the claim, too.
        claim: What it says.
    """

    number: int
    descriptor: int
    claim: Claim

    def take(self, names: tuple[str, ...]) -> None:
        """Note which of them the run has from now on; to be called in `Claims.alone`."""
        self.claim = replace(self.claim, has=names)
        self.write()

    def write(self) -> None:
        """Write down what it says; to be called in `Claims.alone`, so that nobody sees a half."""
        content = json.dumps(asdict(self.claim)).encode()
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, content, 0)
