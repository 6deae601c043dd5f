"""One commit of a git repository, as files. Used by `trainjob.source`.

The git of this machine does the work, with its user's credential helpers and ssh keys: keep
credentials there and not in a url. Submodules are not fetched, and Git LFS files stay the small
pointers that the repository holds.
"""

import difflib
import os
import re
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from trainjob.code_limits import URL_FIELD, CodeLimits, check_limits, refused
from trainjob.errors import Problem, SourceError, SourceUnavailable
from trainjob.storage.listing import Entry, Listing
from trainjob.url_secrets import without_secrets

LIST_TIMEOUT_S = 60
FETCH_TIMEOUT_S = 1800
REF_FIELD = "algorithm.code.ref"

_MIN_COMMIT_DIGITS = 7
_MAX_NAMED_REFS = 5
_COMMIT = re.compile(rf"[0-9a-f]{{{_MIN_COMMIT_DIGITS},64}}")
_FULL_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_ALL_REFS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_SETTINGS = (
    "protocol.allow=never",  # nothing but the transport of the url, whatever it redirects to
    "core.hooksPath=/dev/null",
    "core.autocrlf=false",
    "core.fsmonitor=false",
    "gc.auto=0",  # it would go on in the background
    "maintenance.auto=false",
    "submodule.recurse=false",
    "advice.detachedHead=false",
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=60",
)
_FOREIGN_ENV = re.compile(
    r"GIT_(?:DIR|WORK_TREE|INDEX_FILE|OBJECT_DIRECTORY|ALTERNATE_OBJECT_DIRECTORIES|NAMESPACE"
    r"|COMMON_DIR|PREFIX|TRACE.*|CURL_VERBOSE)"
)
"""Set inside a hook, where they name another repository; or they print credentials."""

_UNREACHABLE = re.compile(
    r"could(?: not|n't) (?:resolve|connect)|failed to connect|connection (?:refused|reset|closed)"
    r"|connection timed out|operation timed out|no route to host|network is unreachable"
    r"|temporary failure|early eof|unexpected disconnect|hung up unexpectedly|rpc failed"
    r"|operation too slow|ssl_error_syscall|returned error: (?:5\d\d|429)",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"authentication failed|could not read (?:username|password)|permission denied"
    r"|host key verification failed|returned error: 40[13]",
    re.IGNORECASE,
)
_NO_OBJECT = re.compile(r"not our ref|unadvertised object|find remote ref", re.IGNORECASE)
_AMBIGUOUS = re.compile("is ambiguous")


class _GitFailed(Exception):
    """git ended with an error; the message is the line that tells why, without credentials."""

    def __init__(self, errors: str) -> None:
        lines = [without_secrets(line).strip() for line in errors.splitlines()]
        telling = [line for line in lines if re.match(r"(?:fatal|error|ssh|remote):", line)]
        self._lines = lines
        super().__init__((telling or lines or ["no message"])[0].removeprefix("fatal: "))

    def line_with(self, pattern: re.Pattern[str]) -> str | None:
        """Return the first line of what git said that matches, or None."""
        found = next((line for line in self._lines if pattern.search(line)), None)
        return found and found.removeprefix("fatal: ")


def shown_url(url: str) -> str:
    """Return a url without its credentials and query; a user name for ssh is none."""
    is_remote = re.match(r"(?:git\+)?(?:https|ssh)://", url)
    is_user_only = re.fullmatch(r"(?:git\+)?ssh://[^/@:?]*@[^@?]*", url)
    return without_secrets(url) if is_remote and not is_user_only else url


def fetch_commit(url: str, ref: str | None, scratch: Path, target: Path, limits: CodeLimits) -> str:
    """Write the files of one commit into the new folder `target` and return its full id.

    Args:
        url: ``git+https://…``, ``git+ssh://…`` or ``git+file://…``.
        ref: A branch, a tag, or a commit, whole or its first 7 or more digits. A branch goes
            before a tag of its name. Absent: the branch that the repository has as default.
        scratch: An existing folder for the repository; the caller removes it.
        target: A folder that is not there yet.
        limits: How much code is allowed.

    Raises:
        SourceError: If there is no such repository, ref or right to read it, or its tree is above
            the limits of code. `SourceUnavailable` if its host does not answer.
    """
    repository = _Repository(url.removeprefix("git+"), scratch / "repository.git")
    commit = _fetch(repository, ref)
    try:
        tree = repository.git("ls-tree", "-r", "-t", "-l", "-z", "--full-tree", commit)
        check_limits(repository.shown, _listing(tree), limits)
        target.mkdir()
        repository.git(f"--work-tree={target}", "checkout", "--quiet", "--force", commit)
    except _GitFailed as error:
        raise _failure(repository, str(error)) from None
    return commit


@dataclass(frozen=True, slots=True)
class _Repository:
    """A repository somewhere, and the bare one at `folder` into which it is fetched."""

    url: str
    folder: Path

    @property
    def shown(self) -> str:
        """The url for messages."""
        return shown_url(self.url)

    def ask(self, *words: str, timeout_s: float) -> str:
        """Run a git command that talks to the other side.

        Raises:
            SourceError: If it does not answer or lets nobody in.
            _GitFailed: If it answers with an error.
        """
        try:
            return self.git(*words, timeout_s=timeout_s)
        except subprocess.TimeoutExpired:
            # Its message holds the command line, and that the credentials.
            raise _unavailable(self, f"no end after {timeout_s:g} s") from None
        except _GitFailed as error:
            if reason := error.line_with(_UNREACHABLE):
                raise _unavailable(self, reason) from None
            if reason := error.line_with(_DENIED):
                raise refused(
                    f"the repository {self.shown!r}",
                    f"that git on this machine may not read it ({reason})",
                    "set up a credential helper or an ssh key for it here",
                ) from None
            raise

    def git(self, *words: str, timeout_s: float | None = None) -> str:
        """Run a git command and return what it prints."""
        scheme = urlsplit(self.url).scheme
        settings = (*_SETTINGS, f"protocol.{scheme}.allow=always")
        options = [word for setting in settings for word in ("-c", setting)]
        argv = ["git", *options, f"--git-dir={self.folder}", *words]
        try:
            # A session of its own: ssh cannot ask on the terminal, and all can be killed at once.
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(),
                start_new_session=True,
            )
        except FileNotFoundError:
            raise refused("git", "no git on PATH", "install git on this machine") from None
        with process:
            try:
                output, errors = process.communicate(timeout=timeout_s)
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        if process.returncode:
            raise _GitFailed(os.fsdecode(errors))
        return os.fsdecode(output)


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not _FOREIGN_ENV.fullmatch(name)}
    return kept | {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "LC_ALL": "C",
    }


def _fetch(repository: _Repository, ref: str | None) -> str:
    """Fetch what `ref` names, with as little history as the other side allows."""
    try:
        refs = _remote_refs(repository)
        repository.git("init", "--quiet", "--bare")
        if name := _name_of(ref, refs):
            return _fetch_one(repository, name)
        if ref is None:
            raise _no_default(repository, refs)
        if _COMMIT.fullmatch(ref):
            return _fetch_by_id(repository, ref, refs)
    except _GitFailed as error:
        raise _failure(repository, str(error)) from None
    raise _no_such_ref(repository, ref, refs)


def _remote_refs(repository: _Repository) -> dict[str, str]:
    """Return HEAD, branches and tags of the other side with the object that each one names."""
    patterns = ("HEAD", "refs/heads/*", "refs/tags/*")
    words = ("ls-remote", "--quiet", "--", repository.url, *patterns)
    text = repository.ask(*words, timeout_s=LIST_TIMEOUT_S)
    pairs = (line.split("\t", 1) for line in text.splitlines())
    return {name: commit for commit, name in pairs if name == "HEAD" or name.startswith("refs/")}


def _name_of(ref: str | None, refs: dict[str, str]) -> str | None:
    """Return the full name of the ref, as the other side lists it, that `ref` means."""
    wanted = ref or "HEAD"
    names = (f"refs/heads/{wanted}", f"refs/tags/{wanted}", wanted)
    # NAME^{} is the commit of the tag NAME, and not a ref.
    return next((name for name in names if name in refs and not name.endswith("^{}")), None)


def _fetch_one(repository: _Repository, wanted: str) -> str:
    repository.ask(
        *("fetch", "--quiet", "--depth=1", "--no-tags", "--", repository.url, wanted),
        timeout_s=FETCH_TIMEOUT_S,
    )
    try:
        return repository.git("rev-parse", "--verify", "FETCH_HEAD^{commit}").strip()
    except _GitFailed:
        raise refused(
            f"the commit {wanted!r} of {repository.shown!r}",
            "an object that is not a commit",
            "name a branch, a tag or a commit",
            field=REF_FIELD,
        ) from None


def _fetch_by_id(repository: _Repository, commit: str, refs: dict[str, str]) -> str:
    listed = {listed for listed in refs.values() if listed.startswith(commit)}
    full = listed.pop() if len(listed) == 1 else commit
    if _FULL_COMMIT.fullmatch(full):
        try:
            return _fetch_one(repository, full)
        except _GitFailed as error:
            if not error.line_with(_NO_OBJECT):
                raise
    # Some servers give a commit only as part of the history of a branch or tag.
    return _fetch_all(repository, commit, refs)


def _fetch_all(repository: _Repository, commit: str, refs: dict[str, str]) -> str:
    repository.ask(
        *("fetch", "--quiet", "--no-tags", "--update-shallow", "--", repository.url, *_ALL_REFS),
        timeout_s=FETCH_TIMEOUT_S,
    )
    try:
        return repository.git("rev-parse", "--verify", f"{commit}^{{commit}}").strip()
    except _GitFailed as error:
        if not error.line_with(_AMBIGUOUS):
            raise _no_such_ref(repository, commit, refs) from None
    raise refused(
        f"the commit {commit!r} of {repository.shown!r}",
        "several commits that start so",
        "write more of its digits",
        field=REF_FIELD,
    )


def _listing(tree: str) -> Listing:
    """Read ``mode type id size<TAB>path`` lines; a submodule is checked out as an empty folder."""
    files, folders = [], []
    for line in tree.split("\0")[:-1]:
        facts, path = line.split("\t", 1)
        _, kind, _, size = facts.split()
        if kind == "blob":
            files.append(Entry(path, int(size), ""))
        else:
            folders.append(path)
    return Listing(tuple(files), tuple(folders))


def _no_such_ref(repository: _Repository, ref: str, refs: dict[str, str]) -> SourceError:
    names = _short_names(refs)
    near = difflib.get_close_matches(ref, names, n=_MAX_NAMED_REFS) or names[:_MAX_NAMED_REFS]
    found = "no branch, tag or commit of that name"
    if near:
        found += f" but {', '.join(repr(name) for name in near)}"
    do = "use a branch or tag that is there, or at least 7 digits of a commit"
    return refused(f"{ref!r} of {repository.shown!r}", found, do, field=REF_FIELD)


def _no_default(repository: _Repository, refs: dict[str, str]) -> SourceError:
    asked = f"the default branch of {repository.shown!r}"
    if names := _short_names(refs)[:_MAX_NAMED_REFS]:
        found = f"none but {', '.join(repr(name) for name in names)}"
        return refused(asked, found, "name one of them here", field=REF_FIELD)
    return refused(asked, "a repository without a commit", "push the code to it")


def _short_names(refs: dict[str, str]) -> list[str]:
    short = (re.sub(r"^refs/(?:heads|tags)/", "", name) for name in refs if name != "HEAD")
    return list(dict.fromkeys(name for name in short if not name.endswith("^{}")))


def _failure(repository: _Repository, found: str) -> SourceError:
    do = "check the url, and that git can clone it on this machine"
    return refused(f"the repository {repository.shown!r}", f"that git says: {found}", do)


def _unavailable(repository: _Repository, reason: str) -> SourceUnavailable:
    asked = f"the repository {repository.shown!r}"
    do = "check the host and the network, or try again later"
    return SourceUnavailable(Problem(URL_FIELD, asked, f"no answer ({reason})", do))
