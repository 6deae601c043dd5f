"""One form for what stores say went wrong: ``url: what was found; what to do``.

Errors are built here, and turned into problems of a job here, so that a check and a run say the
same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from trainjob.errors import Problem, StoreDenied, StoreError, StoreNotFound

E = TypeVar("E", bound=StoreError)


def failure(kind: type[E], url: str, found: str, do: str) -> E:
    """Return an error of this kind; `do` is one sentence without a semicolon."""
    return kind(f"{url}: {found}; {do}")


def problem_of(field: str, asked: str, error: StoreError) -> Problem:
    """Return the problem of a job that a failure is."""
    found, _, do = str(error).partition(": ")[2].rpartition("; ")
    return Problem(field, asked, found, do, may_pass=error.retryable)


@contextmanager
def local_failures(url: str) -> Iterator[None]:
    """Raise what the operating system says about the file or folder `url` as a store's failure."""
    try:
        yield
    except OSError as error:
        raise local_failure(url, error) from error


def local_failure(url: str, error: OSError) -> StoreError:
    """Return what `local_failures` raises, for work that is too small for a context manager."""
    if isinstance(error, FileNotFoundError):
        return failure(StoreNotFound, url, "no such file", "check the path")
    if isinstance(error, PermissionError):
        do = "give the user that runs this the right to read and write there"
        # The folder that was asked for may be this user's, and one file in it not.
        is_said = error.filename is None or str(error.filename).rstrip("/") in url
        found = "permission denied" + ("" if is_said else f" for {str(error.filename)!r}")
        return failure(StoreDenied, url, found, do)
    if isinstance(error, FileExistsError | NotADirectoryError):
        found = "a file, or a link that leads to nothing, is in the place of a folder"
        return failure(StoreError, url, found, "see what is there, or use another folder")
    found = error.strerror or str(error)
    return failure(StoreError, url, found, "see that the disk is in order and has space")
