"""Gets the code of a job: a folder, an object store, an archive or a commit of a git repository.

`fetch_code` and `boot_path` are called by the run and `code_problems` by the check before it; both
obtain and examine the code by the same functions. Of a plain folder, ``.git``, ``__pycache__`` and
what its ``.trainignore`` names are left out; everything else counts and is copied. An archive is
unpacked as it is: if all of it is in one top folder, that folder stays. Submodules of a git
repository are not fetched.
"""

import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from trainjob.algorithm import Code, CommandAlgorithm, ScriptAlgorithm
from trainjob.archive import ARCHIVE_SUFFIXES, is_archive, unpack_archive
from trainjob.code_ignore import without_ignored
from trainjob.code_limits import (
    OWN_LIMITS,
    URL_FIELD,
    CodeLimits,
    check_limits,
    refused,
    too_large,
)
from trainjob.errors import Problem, SourceError, StoreError, StoreNotFound, UnsafeKey
from trainjob.git import fetch_commit, shown_url
from trainjob.startup import startup_problems
from trainjob.storage.failures import failure, local_failures, problem_of
from trainjob.storage.listing import Listing
from trainjob.storage.local_tree import digest_file, list_folder
from trainjob.storage.manifest import FileRecord, fingerprint, has_fingerprint
from trainjob.storage.meter import Meter
from trainjob.storage.paths import check_paths
from trainjob.storage.settings import StoreSettings
from trainjob.storage.stage import list_tree
from trainjob.storage.store import Store, open_store


@dataclass(frozen=True, slots=True)
class FetchedCode:
    """The code of a run as it lies in the workspace.

    Attributes:
        url: Where it came from, without credentials.
        commit: The full id of the git commit; None if it came from elsewhere.
        fingerprint: Over paths, sizes and digests of all files.
        num_entries: Files and folders.
        size_bytes: All files together.
    """

    url: str
    commit: str | None
    fingerprint: str
    num_entries: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Tree:
    """Code on this machine. `folder` is new in the scratch folder, or the job's own folder."""

    folder: Path
    listing: Listing
    commit: str | None = None


def fetch_code(
    code: Code, target: Path, settings: StoreSettings | None, limits: CodeLimits = OWN_LIMITS
) -> FetchedCode:
    """Put the code into the folder `target`, whole or not at all.

    What `target` held before is replaced, so that doing it again gives the same exact tree.

    Args:
        code: Where the code is; a url without a scheme is an absolute path.
        target: The folder; the one above it is made and used for temporary files.
        settings: How to reach an object store; absent: the AWS_* environment.
        limits: How much code is allowed.

    Raises:
        SourceError: If it is not there, above the limits, not fit to be unpacked, or not the
            expected code.
            `SourceUnavailable` if the host of a git repository does not answer.
        StoreError: If a store or a folder does not give it.
    """
    with local_failures(str(target)), _scratch_beside(target) as scratch:
        tree = _obtain(code, scratch, settings, limits)
        if not tree.folder.is_relative_to(scratch):
            tree = _copied(tree, scratch / "tree", target)
        records = _records(tree)
        _refuse_another(code, records)
        if target.exists():
            target.rename(scratch / "replaced")
        tree.folder.rename(target)
    return FetchedCode(
        url=shown_url(code.url),
        commit=tree.commit,
        fingerprint=fingerprint(records),
        num_entries=check_limits(code.url, tree.listing, limits),
        size_bytes=tree.listing.size_bytes,
    )


def code_problems(
    algorithm: ScriptAlgorithm | CommandAlgorithm,
    settings: StoreSettings | None,
    search_path: str | None = None,
    examine: Callable[[Path], list[Problem]] | None = None,
    limits: CodeLimits = OWN_LIMITS,
    measure: Callable[[Listing], object] | None = None,
) -> list[Problem]:
    """Return everything that is wrong with the code of a job and with what it starts.

    A folder is examined in place; anything else is fetched into a temporary folder and removed. A
    store or host that does not answer is a problem as well.

    Args:
        algorithm: The part of the job, with an absolute path in its url if it has no scheme.
        settings: How to reach an object store; absent: the AWS_* environment.
        search_path: The PATH of the ranks, if the job sets it.
        examine: Called with the folder of the code, if nothing is wrong with it so far.
        limits: How much code is allowed.
        measure: Called with what the code is, if it could be had.
    """
    with tempfile.TemporaryDirectory(prefix="trainjob-check-") as scratch:
        tree = problem = None
        try:
            with local_failures(algorithm.code.url):
                tree = _obtain(algorithm.code, Path(scratch), settings, limits)
                if algorithm.code.expect:
                    _refuse_another(algorithm.code, _records(tree))
        except SourceError as error:
            problem = _problem_in(error)
        except StoreError as error:
            problem = problem_of(URL_FIELD, f"the code at {algorithm.code.url!r}", error)
        folder = tree.folder if tree else None
        files = [file.path for file in tree.listing.files] if tree else []
        if tree is not None and measure is not None:
            measure(tree.listing)
        problems = [
            *([problem] if problem else []),
            *startup_problems(algorithm, folder, files, search_path),
        ]
        if folder is not None and not problems and examine is not None:
            problems += examine(folder)
        return problems


def _records(tree: _Tree) -> list[FileRecord]:
    return [
        FileRecord(file.path, file.size_bytes, digest_file(tree.folder / file.path))
        for file in tree.listing.files
    ]


def _refuse_another(code: Code, records: list[FileRecord]) -> None:
    if code.expect is not None and not has_fingerprint(records, code.expect):
        raise refused(
            f"the code at {shown_url(code.url)!r} with the fingerprint {code.expect}",
            f"the fingerprint {fingerprint(records)}",
            "put the expected code there, or register what is there as a new version",
        )


def boot_path(algorithm: ScriptAlgorithm, code_dir: Path) -> Path:
    """Return the boot file in the fetched code.

    Args:
        algorithm: The part of the job.
        code_dir: What `fetch_code` filled.

    Raises:
        SourceError: With the text of the problem that `code_problems` would have found.
    """
    files = [file.path for file in list_folder(code_dir).files]
    for problem in startup_problems(algorithm, code_dir, files):
        raise SourceError(problem)
    return code_dir / algorithm.boot_file


def _problem_in(error: SourceError) -> Problem:
    """Return the problem of a job that an error of code is; see `trainjob.code_limits.refused`."""
    problem: Problem = error.args[0]
    return replace(problem, may_pass=error.retryable)


@contextmanager
def _scratch_beside(target: Path) -> Iterator[Path]:
    """Give a new folder on the file system of `target`, and remove it and those left behind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    ours = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{32}}\.fetch")
    for path in target.parent.iterdir():
        if ours.fullmatch(path.name):
            shutil.rmtree(path)
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}.fetch")
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _obtain(code: Code, scratch: Path, settings: StoreSettings | None, limits: CodeLimits) -> _Tree:
    """Return the code as a folder of this machine that is within all limits."""
    url, folder = code.url, scratch / "tree"
    if url.startswith("git+"):
        commit = fetch_commit(url, code.ref, scratch, folder, limits)
        return _Tree(folder, _listing(folder, shown_url(url)), commit)
    if archive := _archive_file(url, scratch, settings, limits):
        unpack_archive(archive, url, folder, limits)
    elif url.startswith("s3://"):
        with open_store(url, settings) as store:
            listing = list_tree(store)
            check_limits(url, listing, limits)
            _download(store, listing, folder)
    else:
        return _examined(_local_path(url), url, limits)
    return _Tree(folder, _listing(folder, url))


def _examined(folder: Path, url: str, limits: CodeLimits) -> _Tree:
    """Examine a folder of this machine where it lies."""
    with local_failures(url):
        if not stat.S_ISDIR(folder.stat().st_mode):
            do = f"give the folder that holds it, or an archive ({', '.join(ARCHIVE_SUFFIXES)})"
            raise refused(f"the code at {url!r}", "a single file", do)
    whole = _listing(folder, url)
    with local_failures(url):
        listing = without_ignored(folder, whole)
    check_limits(url, listing, limits)
    return _Tree(folder, listing)


def _listing(folder: Path, place: str) -> Listing:
    """List a folder of this machine; links may lead only to places in it."""
    try:
        with local_failures(place):
            listing = list_folder(folder, links_inside=True)
        check_paths(place, [file.path for file in listing.files], listing.folders)
    except UnsafeKey as error:
        raise SourceError(problem_of(URL_FIELD, f"the code at {place!r}", error)) from error
    return listing


def _copied(tree: _Tree, folder: Path, target: Path) -> _Tree:
    """Copy the job's own folder, of which `target` must not be a part."""
    if target.resolve().is_relative_to(tree.folder.resolve()):
        raise refused(
            f"the code at {str(tree.folder)!r}",
            f"that the run itself works in it, at {str(target)!r}",
            "put the code into a folder of its own, or set TRAINJOB_WORKDIR to another place",
        )
    with open_store(str(tree.folder)) as store:
        _download(store, tree.listing, folder)
    return _Tree(folder, tree.listing)


def _download(store: Store, listing: Listing, folder: Path) -> None:
    folder.mkdir()
    for path in listing.folders:
        (folder / path).mkdir(parents=True, exist_ok=True)
    store.download(listing.files, folder, Meter("code", listing.files))


def _local_path(url: str) -> Path:
    """Return the path of a url without a scheme or of ``file://``; it must be absolute."""
    return Path(open_store(url).url)


def _archive_file(
    url: str, scratch: Path, settings: StoreSettings | None, limits: CodeLimits
) -> Path | None:
    """Return the archive on this machine that the url names, or None if it names a folder."""
    if not is_archive(url):
        return None
    if url.startswith("s3://"):
        return _downloaded_object(url, scratch, settings, limits)
    file = _local_path(url)
    return None if file.is_dir() else file


def _downloaded_object(
    url: str, scratch: Path, settings: StoreSettings | None, limits: CodeLimits
) -> Path:
    """Download the one object at `url` into `scratch` and return its path."""
    folder, _, name = url.rpartition("/")
    with open_store(f"{folder}/", settings) as store:
        archive = store.find(name)
        if archive is None:
            raise failure(StoreNotFound, url, "no such object", "check the url")
        if archive.size_bytes > limits.max_bytes:
            raise too_large(url, archive.size_bytes, name, limits)
        store.download([archive], scratch, Meter("code", [archive]))
    return scratch / name
