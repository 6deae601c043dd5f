import os
import re
import shutil
import socket
import subprocess
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import trainjob.git
from tests.waiting import wait_until
from trainjob.algorithm import Code, ScriptAlgorithm
from trainjob.code_limits import MODELARTS_LIMITS, CodeLimits
from trainjob.errors import SourceError, SourceUnavailable
from trainjob.git import shown_url
from trainjob.source import FetchedCode, code_problems, fetch_code

ADVICE = "check the url, and that git can clone it on this machine"


class Repository:
    """A repository with two commits, a tag on the first one, and the branches main and dev."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"git+file://{folder}"
        folder.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")
        self.first = self.commit({"train.py": "print(1)\n", "pkg/a.py": ""})
        self.git("tag", "--annotate", "--message=one", "v1.0")
        self.git("branch", "dev")
        self.second = self.commit({"train.py": "print(2)\n"})

    def git(self, *words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=self.folder, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def commit(self, files: dict[str, str]) -> str:
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=change")
        return self.git("rev-parse", "HEAD")


@pytest.fixture(autouse=True)
def git_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "test")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "test@example.org")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """Give the code folder of a run, and prove that nothing is left beside it."""
    target = tmp_path / "run" / "code"
    yield target
    assert names_in(target.parent) in ([], ["code"])


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


def fetch(
    url: str, ref: str | None, target: Path, limits: CodeLimits = MODELARTS_LIMITS
) -> FetchedCode:
    return fetch_code(Code(url=url, ref=ref), target, None, limits)


def refusal_of(url: str, ref: str | None, target: Path) -> str:
    with pytest.raises(SourceError) as caught:
        fetch(url, ref, target)
    assert not caught.value.retryable
    assert not target.exists()
    return str(caught.value)


def test_fetches_the_default_branch_without_a_ref(repository: Repository, target: Path) -> None:
    fetched = fetch(repository.url, None, target)

    assert fetched.commit == repository.second
    assert fetched.url == repository.url
    assert (fetched.num_entries, fetched.size_bytes) == (3, 9)
    assert (target / "train.py").read_text() == "print(2)\n"
    assert names_in(target) == ["pkg", "train.py"]


@pytest.mark.parametrize(
    "ref", ["dev", "refs/heads/dev", "v1.0", "refs/tags/v1.0", "FULL", "SHORT", "TAG OBJECT"]
)
def test_resolves_every_kind_of_ref_to_the_same_commit(
    ref: str, repository: Repository, target: Path
) -> None:
    """The first commit: a branch, an annotated tag and two spellings of its id."""
    spelled = {
        "FULL": repository.first,
        "SHORT": repository.first[:7],
        "TAG OBJECT": repository.git("rev-parse", "v1.0"),
    }

    fetched = fetch(repository.url, spelled.get(ref, ref), target)

    assert fetched.commit == repository.first
    assert (target / "train.py").read_text() == "print(1)\n"


@pytest.mark.parametrize("num_digits", [40, 12])
@pytest.mark.parametrize("protocol", ["0", "2"])
def test_finds_a_commit_that_no_ref_points_to(
    num_digits: int,
    protocol: str,
    repository: Repository,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Protocol 0 gives no unlisted commit, so that the history has to be fetched."""
    middle = repository.second
    repository.commit({"train.py": "print(3)\n"})
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "protocol.version")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", protocol)

    fetched = fetch(repository.url, middle[:num_digits], target)

    assert fetched.commit == middle
    assert (target / "train.py").read_text() == "print(2)\n"


def test_fetches_from_a_shallow_clone(repository: Repository, target: Path, tmp_path: Path) -> None:
    repository.git(
        "clone", "--quiet", "--depth=1", f"file://{repository.folder}", str(tmp_path / "shallow")
    )
    url = f"git+file://{tmp_path}/shallow"

    by_branch = fetch(url, "main", target)
    by_digits = fetch(url, repository.second[:9], target)

    assert by_branch == by_digits
    assert by_branch.commit == repository.second


def test_a_branch_goes_before_a_tag_of_its_name(repository: Repository, target: Path) -> None:
    repository.git("tag", "main", repository.first)

    assert fetch(repository.url, "main", target).commit == repository.second


def test_a_second_fetch_gives_the_same_tree_and_a_moved_branch_the_new_one(
    repository: Repository, target: Path
) -> None:
    first = fetch(repository.url, "main", target)
    (target / "left over.py").write_text("")
    again = fetch(repository.url, "main", target)
    repository.git("rm", "--quiet", "-r", "pkg")
    moved = repository.commit({"new.py": ""})

    third = fetch(repository.url, "main", target)

    assert again == first
    assert third.commit == moved
    assert names_in(target) == ["new.py", "train.py"]


def test_the_fingerprint_is_that_of_the_same_files_in_a_folder(
    repository: Repository, target: Path
) -> None:
    by_git = fetch(repository.url, None, target)
    by_folder = fetch(str(repository.folder), None, target)

    assert by_git.fingerprint == by_folder.fingerprint
    assert by_folder.commit is None


def test_keeps_executable_files_and_links_within_the_code(
    repository: Repository, target: Path
) -> None:
    (repository.folder / "run.sh").write_text("#!/bin/sh\n")
    (repository.folder / "run.sh").chmod(0o755)
    (repository.folder / "link.py").symlink_to("pkg/a.py")
    repository.commit({})

    fetch(repository.url, None, target)

    assert os.access(target / "run.sh", os.X_OK)
    assert (target / "link.py").resolve() == (target / "pkg/a.py").resolve()


def test_refuses_a_link_out_of_the_code_by_name(repository: Repository, target: Path) -> None:
    (repository.folder / "passwords").symlink_to("/etc/passwd")
    repository.commit({})

    message = refusal_of(repository.url, None, target)

    assert message == (
        f"algorithm.code.url: asked for the code at {repository.url!r}, "
        "found 'passwords' is a link out of the folder, to '/etc/passwd'; "
        "remove it or put a file there"
    )


def test_does_not_fetch_submodules_and_runs_no_hook(
    repository: Repository, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Repository(tmp_path / "other")
    repository.git(
        *("-c", "protocol.file.allow=always", "submodule", "--quiet", "add"),
        *(f"file://{other.folder}", "vendored"),
    )
    repository.commit({})
    template = tmp_path / "template" / "hooks"
    template.mkdir(parents=True)
    (template / "post-checkout").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (template / "post-checkout").chmod(0o755)
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(template.parent))

    fetch(repository.url, None, target)

    assert list((target / "vendored").iterdir()) == []
    assert not (tmp_path / "ran").exists()


def test_an_unknown_ref_names_the_nearest_that_exist(repository: Repository, target: Path) -> None:
    repository.git("branch", "maintenance")

    assert refusal_of(repository.url, "mian", target) == (
        f"algorithm.code.ref: asked for 'mian' of 'file://{repository.folder}', "
        "found no branch, tag or commit of that name but 'main'; "
        "use a branch or tag that is there, or at least 7 digits of a commit"
    )


@pytest.mark.parametrize(
    "ref",
    ["quite-different", "f" * 40, "abcdef0", "abc", "--upload-pack=touch x", "v1.0^{}", "a..b"],
)
def test_an_unknown_ref_names_some_that_exist(
    ref: str, repository: Repository, target: Path
) -> None:
    message = refusal_of(repository.url, ref, target)

    assert f"algorithm.code.ref: asked for {ref!r} of" in message
    assert re.search(r"of that name but .*'(?:main|dev|v1\.0)'", message)


def test_digits_that_many_commits_start_with_are_refused(
    repository: Repository, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With four digits instead of seven: nobody can make two commits that share seven."""
    monkeypatch.setattr(trainjob.git, "_COMMIT", re.compile(r"[0-9a-f]{4,64}"))
    stream = "".join(
        f"commit refs/heads/many\ncommitter test <test@example.org> {second} +0000\ndata 0\n"
        for second in range(1000)
    )
    subprocess.run(
        ["git", "fast-import", "--quiet"], cwd=repository.folder, input=stream.encode(), check=True
    )
    starts = Counter(commit[:4] for commit in repository.git("rev-list", "many").split())
    shared, count = starts.most_common(1)[0]

    message = refusal_of(repository.url, shared, target)

    assert count > 1
    assert message == (
        f"algorithm.code.ref: asked for the commit {shared!r} of 'file://{repository.folder}', "
        "found several commits that start so; write more of its digits"
    )


def test_a_ref_that_is_not_a_commit_is_refused(repository: Repository, target: Path) -> None:
    tree = repository.git("rev-parse", "HEAD^{tree}")

    assert refusal_of(repository.url, tree, target) == (
        f"algorithm.code.ref: asked for the commit {tree!r} of 'file://{repository.folder}', "
        "found an object that is not a commit; name a branch, a tag or a commit"
    )


def test_an_empty_repository_is_refused(target: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    subprocess.run(["git", "init", "--quiet", "--bare", str(folder)], check=True)

    assert refusal_of(f"git+file://{folder}", None, target) == (
        f"algorithm.code.url: asked for the default branch of 'file://{folder}', "
        "found a repository without a commit; push the code to it"
    )


def test_a_repository_without_a_default_branch_names_its_branches(
    repository: Repository, target: Path
) -> None:
    repository.git("symbolic-ref", "HEAD", "refs/heads/gone")

    message = refusal_of(repository.url, None, target)

    assert message.startswith("algorithm.code.ref: asked for the default branch of ")
    assert message.endswith("found none but 'dev', 'main', 'v1.0'; name one of them here")


def test_a_missing_repository_is_refused_with_what_git_says(target: Path, tmp_path: Path) -> None:
    assert refusal_of(f"git+file://{tmp_path}/none", None, target) == (
        f"algorithm.code.url: asked for the repository 'file://{tmp_path}/none', found that git "
        f"says: '{tmp_path}/none' does not appear to be a git repository; {ADVICE}"
    )


def test_a_commit_above_the_limit_of_entries_is_refused(
    repository: Repository, target: Path
) -> None:
    repository.commit({f"data/{i}": "" for i in range(1021)})
    above = "found 1,025 in"

    assert above in refusal_of(repository.url, None, target)


def test_a_commit_of_1024_files_and_folders_is_taken(repository: Repository, target: Path) -> None:
    repository.commit({f"data/{i}": "" for i in range(1020)})

    assert fetch(repository.url, None, target).num_entries == 1024


def test_a_commit_above_the_limit_of_bytes_is_refused(repository: Repository, target: Path) -> None:
    """The limit is a low one: a repository of more than 5 GiB takes too long to make."""
    with pytest.raises(SourceError) as caught:
        fetch(repository.url, None, target, CodeLimits(max_entries=9, max_bytes=8))

    message = str(caught.value)
    assert "asked for code of at most 8 B, found 9 B in" in message
    assert "the largest file being 'train.py'" in message


def test_a_host_that_does_not_answer_is_unavailable_and_can_be_retried(target: Path) -> None:
    with pytest.raises(SourceUnavailable) as caught:
        fetch("git+https://127.0.0.1:1/x.git", None, target)

    assert caught.value.retryable
    assert str(caught.value).startswith(
        "algorithm.code.url: asked for the repository 'https://127.0.0.1:1/x.git', found no answer"
    )
    assert str(caught.value).endswith("; check the host and the network, or try again later")


def test_a_host_that_hangs_is_given_up(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainjob.git, "LIST_TIMEOUT_S", 0.3)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(SourceUnavailable, match=r"no answer \(no end after 0\.3 s\)"):
            fetch(f"git+https://u:secret@127.0.0.1:{port}/x.git", None, target)

    wait_until(lambda: not processes_with(f"127.0.0.1:{port}/x.git"))


def processes_with(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_text(errors="replace"))
    return [command for command in found if word in command]


@pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh is not installed")
def test_ssh_never_asks_and_its_failure_is_told(target: Path) -> None:
    with pytest.raises(SourceUnavailable, match=r"git@127\.0\.0\.1:1/x\.git"):
        fetch("git+ssh://git@127.0.0.1:1/x.git", None, target)


def test_a_host_that_lets_nobody_in_is_told_and_not_tried_again(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ssh of the user is used; this one says what OpenSSH says when it has no key."""
    refusal = "git@host: Permission denied (publickey)."
    monkeypatch.setenv("GIT_SSH_COMMAND", f"sh -c 'echo \"{refusal}\" >&2; exit 255'")

    assert refusal_of("git+ssh://git@host/x.git", None, target) == (
        "algorithm.code.url: asked for the repository 'ssh://git@host/x.git', found that git on "
        "this machine may not read it (git@host: Permission denied (publickey).); "
        "set up a credential helper or an ssh key for it here"
    )


@pytest.mark.parametrize(
    "credentials", ["user:s3cr3t@", "s3cr3t@", "user:s3%2Fcr3t:s3cr3t@", "user:pa/s3cr3t@"]
)
@pytest.mark.parametrize("port", ["1", "99999"])
def test_credentials_in_a_url_are_never_shown(
    credentials: str, port: str, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"git+https://{credentials}127.0.0.1:{port}/x.git?private_token=s3cr3t"
    algorithm = ScriptAlgorithm(code=Code(url=url), boot_file="train.py")

    with pytest.raises(SourceError) as caught:
        fetch(url, "main", target)
    problems = code_problems(algorithm, None)

    told = "".join([*traceback.format_exception(caught.value), *map(str, problems), caplog.text])
    assert "***@127.0.0.1" in told
    assert "s3cr3t" not in told
    assert "s3cr3t" not in shown_url(url)


def test_the_user_name_of_an_ssh_url_is_no_secret() -> None:
    assert shown_url("git+ssh://git@host/a/b.git") == "git+ssh://git@host/a/b.git"
    assert shown_url("git+ssh://git:word@host/a/b.git") == "git+ssh://***@host/a/b.git"
    assert shown_url("s3://bucket/a@b?c") == "s3://bucket/a@b?c"


def test_only_the_transport_of_the_url_is_used(
    repository: Repository, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{repository.folder}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://example.org/x.git")

    message = refusal_of("git+https://example.org/x.git", None, target)

    assert "git says: transport 'file' not allowed" in message


def test_git_variables_of_a_hook_are_not_passed_on(
    repository: Repository, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nonexistent")
    monkeypatch.setenv("GIT_WORK_TREE", "/nonexistent")

    assert fetch(repository.url, None, target).commit == repository.second


def test_without_git_it_is_told(
    repository: Repository, target: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert refusal_of(repository.url, None, target) == (
        "algorithm.code.url: asked for git, found no git on PATH; install git on this machine"
    )
