import hashlib
import json
import os
import socket
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.s3_server import S3Server
from trainjob.algorithm import Code, ScriptAlgorithm
from trainjob.code_limits import MODELARTS_LIMITS, OWN_LIMITS
from trainjob.errors import SourceError, StoreDenied, StoreError, StoreNotFound
from trainjob.source import FetchedCode, boot_path, code_problems, fetch_code
from trainjob.storage.own_files import RECEIPT
from trainjob.storage.settings import StoreSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my code"
    (folder / "pkg" / "empty").mkdir(parents=True)
    (folder / "train.py").write_text("print('größe')\n")
    (folder / "pkg" / "a b.py").write_text("")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """Give the code folder of a run, and prove that nothing is left beside it."""
    target = tmp_path / "run" / "code"
    yield target
    assert tree_of(target.parent, depth=1) in ([], ["code"])


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the folder for temporary files, and prove that it is empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert tree_of(folder) == []


def tree_of(folder: Path, depth: int = 9) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return sorted(str(path) for path in paths if len(path.parts) <= depth)


def fetch(url: str | Path, target: Path, settings: StoreSettings | None = None) -> FetchedCode:
    return fetch_code(Code(url=str(url)), target, settings, MODELARTS_LIMITS)


def refusal_of(url: str | Path, target: Path) -> str:
    """Return the message of the run, which is that of the check, and that nothing was made."""
    with pytest.raises((SourceError, StoreError)) as caught:
        fetch(url, target)
    assert not caught.value.retryable
    assert not target.exists()
    return str(caught.value)


def problems_of(
    url: str | Path, boot_file: str = "train.py", settings: StoreSettings | None = None
) -> list[str]:
    algorithm = ScriptAlgorithm(code=Code(url=str(url)), boot_file=boot_file)
    problems = code_problems(algorithm, settings, limits=MODELARTS_LIMITS)
    return [str(problem) for problem in problems]


def zip_folder(folder: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return file


def fill(folder: Path, num_files: int) -> Path:
    folder.mkdir()
    for i in range(num_files):
        (folder / f"{i}.py").touch()
    return folder


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_copies_a_folder_with_modes_and_empty_folders(
    scheme: str, folder: Path, target: Path
) -> None:
    fetched = fetch(f"{scheme}{folder}", target)

    assert tree_of(target) == ["pkg", "pkg/a b.py", "pkg/empty", "run.sh", "train.py"]
    assert (target / "train.py").read_text() == "print('größe')\n"
    assert stat.S_IMODE((target / "run.sh").stat().st_mode) & 0o111 == 0o111
    assert fetched.url == f"{scheme}{folder}"
    assert fetched.commit is None
    assert (fetched.num_entries, fetched.size_bytes) == (5, 27)
    assert fetched.fingerprint.startswith("sha256:")


def test_a_second_fetch_gives_the_same_exact_tree(folder: Path, target: Path) -> None:
    first = fetch(folder, target)
    before = tree_of(target)
    (target / "train.py").write_text("changed by a run")
    (target / "__pycache__").mkdir()

    second = fetch(folder, target)

    assert second == first
    assert tree_of(target) == before
    assert (target / "train.py").read_text() == "print('größe')\n"


def test_what_was_there_stays_when_the_fetch_fails(folder: Path, target: Path) -> None:
    fetch(folder, target)
    before = tree_of(target)

    with pytest.raises(StoreNotFound):
        fetch(folder / "gone", target)

    assert tree_of(target) == before


def test_removes_what_a_killed_fetch_left_behind_and_nothing_else(
    folder: Path, target: Path
) -> None:
    left = target.with_name(f".code.{'a' * 32}.fetch") / "tree"
    left.mkdir(parents=True)
    other = target.with_name(".code.backup")
    other.mkdir()

    fetch(folder, target)

    assert tree_of(target.parent, depth=1) == [".code.backup", "code"]
    other.rmdir()


def test_leaves_out_git_and_python_caches_and_does_not_count_them(
    folder: Path, target: Path
) -> None:
    for name in (".git", "pkg/__pycache__"):
        fill(folder / name, 1100)
    fill(folder / ".venv", 2)

    fetched = fetch(folder, target)

    assert fetched.num_entries == 5 + 3
    assert tree_of(target, depth=1) == [".venv", "pkg", "run.sh", "train.py"]


def test_the_fingerprint_tells_content_and_names_apart(folder: Path, target: Path) -> None:
    first = fetch(folder, target).fingerprint
    (folder / "train.py").write_text("print('grösse')\n")
    second = fetch(folder, target).fingerprint
    (folder / "pkg" / "a b.py").rename(folder / "pkg" / "a.py")
    third = fetch(folder, target).fingerprint

    assert len({first, second, third}) == 3


def test_code_that_was_pinned_when_a_receipt_counted_is_still_the_same(
    folder: Path, target: Path
) -> None:
    """As saved algorithms have it whose code `python -m flows upload` brought."""
    (folder / RECEIPT).parent.mkdir()
    (folder / RECEIPT).write_text("{}")
    files = [path for path in folder.rglob("*") if path.is_file()]
    rows = sorted(
        [
            path.relative_to(folder).as_posix(),
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        ]
        for path in files
    )
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    of_before = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    code = Code(url=str(folder), expect=of_before)

    fetched = fetch_code(code, target, None)
    problems = code_problems(ScriptAlgorithm(code=code, boot_file="train.py"), None)

    assert fetched.fingerprint != of_before
    assert problems == []
    with pytest.raises(SourceError, match=f"found the fingerprint {fetched.fingerprint}"):
        fetch_code(code.model_copy(update={"expect": f"sha256:{0:064}"}), target, None)


def test_links_within_the_folder_are_followed(folder: Path, target: Path) -> None:
    (folder / "main.py").symlink_to(folder / "train.py")
    (folder / "lib").symlink_to("pkg")

    fetch(folder, target)

    assert not (target / "main.py").is_symlink()
    assert (target / "main.py").read_bytes() == (folder / "train.py").read_bytes()
    assert (target / "lib" / "a b.py").is_file()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("passwords", "found 'passwords' is a link out of the folder, to '/etc/passwd'; remove it"),
        ("broken", "found 'broken' is a link that leads to nothing; remove it"),
        ("loop", "found 'loop' is a link to a folder that it is in; remove it"),
        ("pipe", "found 'pipe' is not a regular file; remove it"),
        ("socket", "found 'socket' is not a regular file; remove it"),
        ("caf\udce9.py", "found the key 'caf\\udce9.py' is not UTF-8 text; rename"),
    ],
)
def test_refuses_by_name_what_cannot_be_copied(
    name: str, found: str, folder: Path, target: Path
) -> None:
    if name == "pipe":
        os.mkfifo(folder / name)
    elif name == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / name))
    elif name.endswith(".py"):
        (folder / name).touch()
    else:
        links = {"passwords": "/etc/passwd", "broken": "gone", "loop": "../my code"}
        (folder / name).symlink_to(links[name])

    message = refusal_of(folder, target)

    assert message.startswith(f"algorithm.code.url: asked for the code at {str(folder)!r}, {found}")
    assert problems_of(folder)[0] == message


def test_takes_1024_files_and_folders_and_not_one_more(tmp_path: Path, target: Path) -> None:
    folder = fill(tmp_path / "code", 1023)
    (folder / "data").mkdir()
    assert fetch(folder, target).num_entries == 1024

    (folder / "train.py").touch()

    with pytest.raises(SourceError) as caught:
        fetch(folder, target)
    assert str(caught.value) == (
        "algorithm.code.url: asked for code of at most 1,024 files and folders, "
        f"found 1,025 in {str(folder)!r}; "
        "leave out what the training does not import, and give data as an input channel"
    )
    assert problems_of(folder) == [str(caught.value)]


def test_products_without_limits_of_their_own_take_more_code(folder: Path, target: Path) -> None:
    fill(folder / "data", 1500)

    fetched = fetch_code(Code(url=str(folder)), target, None)

    assert fetched.num_entries == 1506 < OWN_LIMITS.max_entries


def test_the_folder_with_most_of_the_entries_is_named(folder: Path, target: Path) -> None:
    fill(folder / "data", 1500)

    assert f"found 1,506 in {str(folder)!r}, 1,501 of them in 'data';" in refusal_of(folder, target)


def test_refuses_more_than_5_gib_before_it_copies(folder: Path, target: Path) -> None:
    with (folder / "weights.bin").open("wb") as sparse:
        sparse.truncate(MODELARTS_LIMITS.max_bytes)

    message = refusal_of(folder, target)

    assert message == (
        "algorithm.code.url: asked for code of at most 5 GiB, "
        f"found 5.0 GiB in {str(folder)!r}, the largest file being 'weights.bin'; "
        "leave out what the training does not import, and give data as an input channel"
    )
    assert problems_of(folder) == [message]


def test_a_folder_without_a_file_is_refused(tmp_path: Path, target: Path) -> None:
    (tmp_path / "code" / "sub").mkdir(parents=True)

    message = refusal_of(tmp_path / "code", target)

    assert message == (
        f"algorithm.code.url: asked for code, found no file in '{tmp_path}/code'; "
        "check the url and put the code there"
    )
    assert problems_of(tmp_path / "code") == [message]


def test_a_missing_folder_is_not_found(tmp_path: Path, target: Path) -> None:
    url = f"{tmp_path}/gone"

    assert refusal_of(url, target) == f"{url}: no such file; check the path"
    assert problems_of(url) == [
        f"algorithm.code.url: asked for the code at {url!r}, found no such file; check the path"
    ]


def test_a_single_file_that_is_no_archive_is_refused(folder: Path, target: Path) -> None:
    url = f"{folder}/train.py"

    message = refusal_of(url, target)

    assert message == (
        f"algorithm.code.url: asked for the code at {url!r}, found a single file; "
        "give the folder that holds it, or an archive (.zip, .tar, .tar.gz, .tgz)"
    )
    assert problems_of(url) == [message]


def test_a_relative_path_is_refused(target: Path) -> None:
    assert "not a place that is known" in refusal_of("examples/digits", target)
    assert "not a place that is known" in problems_of("examples/digits")[0]


def test_a_code_folder_that_holds_the_workspace_is_refused(folder: Path) -> None:
    with pytest.raises(SourceError, match="found that the run itself works in it"):
        fetch(folder, folder / "runs" / "1" / "code")

    assert tree_of(folder / "runs") == ["1"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_denied(folder: Path, target: Path) -> None:
    (folder / "pkg").chmod(0)

    try:
        with pytest.raises(StoreDenied, match="permission denied"):
            fetch(folder, target)
    finally:
        (folder / "pkg").chmod(0o755)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_unpacks_a_local_archive_with_the_fingerprint_of_its_folder(
    scheme: str, folder: Path, target: Path, tmp_path: Path
) -> None:
    file = zip_folder(folder, tmp_path / "code.zip")

    from_archive = fetch(f"{scheme}{file}", target)
    from_folder = fetch(folder, target)

    assert from_archive.fingerprint == from_folder.fingerprint
    assert from_archive.num_entries == from_folder.num_entries == 5


def test_a_folder_may_be_named_like_an_archive(folder: Path, target: Path) -> None:
    fetch(folder.rename(folder.with_name("code.zip")), target)

    assert (target / "train.py").is_file()


def test_a_damaged_archive_leaves_nothing_behind(
    target: Path, temporary: Path, tmp_path: Path
) -> None:
    (tmp_path / "code.tgz").write_bytes(b"\x1f\x8b damaged")

    message = refusal_of(tmp_path / "code.tgz", target)

    assert problems_of(tmp_path / "code.tgz") == [message]


def test_a_check_of_an_archive_finds_the_boot_file_in_its_top_folder(
    folder: Path, temporary: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "mnist.tar.gz", "w:gz") as archive:
        archive.add(folder, "mnist.pytorch")

    assert problems_of(tmp_path / "mnist.tar.gz") == [
        "algorithm.boot_file: asked for the boot file 'train.py', "
        "found no such file in the code; did you mean 'mnist.pytorch/train.py'?"
    ]
    assert problems_of(tmp_path / "mnist.tar.gz", "mnist.pytorch/train.py") == []


def test_a_check_changes_nothing(folder: Path, temporary: Path) -> None:
    before = [(path, path.lstat()) for path in sorted(folder.rglob("*"))]

    assert problems_of(folder) == []

    assert [(path, path.lstat()) for path in sorted(folder.rglob("*"))] == before


def test_all_problems_are_found_at_once(tmp_path: Path) -> None:
    fields = [text.partition(":")[0] for text in problems_of(tmp_path / "gone", "train.sh")]

    assert fields == ["algorithm.code.url", "algorithm.boot_file"]


def test_the_run_says_of_a_boot_file_what_the_check_said(folder: Path, target: Path) -> None:
    fetch(folder, target)
    here = ScriptAlgorithm(code=Code(url=str(folder)), boot_file="train.py")
    gone = ScriptAlgorithm(code=Code(url=str(folder)), boot_file="trian.py")

    assert boot_path(here, target) == target / "train.py"
    with pytest.raises(SourceError) as caught:
        boot_path(gone, target)
    assert [str(caught.value)] == problems_of(folder, "trian.py")


def test_fetches_a_prefix_of_a_bucket(s3: S3Server, target: Path, temporary: Path) -> None:
    bucket = s3.new_bucket()
    for key in ("code/train.py", "code/pkg/a.py", "code/.git/x", "code2/no.py"):
        s3.put(bucket, key, key.encode())
    s3.put(bucket, "code/empty/")

    first = fetch(f"s3://{bucket}/code", target, s3.settings)
    again = fetch(f"s3://{bucket}/code/", target, s3.settings)

    assert tree_of(target) == [".git", ".git/x", "empty", "pkg", "pkg/a.py", "train.py"]
    assert first.fingerprint == again.fingerprint
    assert first.num_entries == 6
    assert problems_of(f"s3://{bucket}/code", settings=s3.settings) == []


def test_settings_of_a_store_may_come_from_the_environment(
    s3: S3Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.new_bucket()
    s3.put(bucket, "train.py")
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)

    assert fetch(f"s3://{bucket}", target).num_entries == 1


@pytest.mark.parametrize("key", ["code.zip", "some folder/größe.zip"])
def test_fetches_an_archive_from_a_bucket(
    key: str, s3: S3Server, folder: Path, target: Path, temporary: Path, tmp_path: Path
) -> None:
    bucket = s3.new_bucket()
    s3.put(bucket, key, zip_folder(folder, tmp_path / "c.zip").read_bytes())
    s3.put(bucket, f"{key}.bak")

    fetched = fetch(f"s3://{bucket}/{key}", target, s3.settings)

    assert tree_of(target) == ["pkg", "pkg/a b.py", "pkg/empty", "run.sh", "train.py"]
    assert fetched.num_entries == 5
    assert problems_of(f"s3://{bucket}/{key}", settings=s3.settings) == []


def test_a_bucket_with_1025_entries_is_refused_before_a_byte_is_copied(
    s3: S3Server, target: Path, temporary: Path
) -> None:
    bucket = s3.new_bucket()
    for i in range(1024):
        s3.put(bucket, f"code/pkg/{i}.py")

    problems = problems_of(f"s3://{bucket}/code/", settings=s3.settings)

    assert [p for p in problems if "algorithm.code.url" in p] == [
        "algorithm.code.url: asked for code of at most 1,024 files and folders, "
        f"found 1,025 in 's3://{bucket}/code/', 1,025 of them in 'pkg'; "
        "leave out what the training does not import, and give data as an input channel"
    ]
    with pytest.raises(SourceError, match="1,025"):
        fetch(f"s3://{bucket}/code/", target, s3.settings)


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("BUCKET/gone/", "found no such folder, or no file in it;"),
        ("BUCKET/gone.zip", "found no such object; check the url"),
        ("BUCKET/code.zi", "found no such folder, or no file in it;"),
        ("no-such-bucket/code/", "found no bucket of that name;"),
        ("no-such-bucket/code.zip", "found no bucket of that name;"),
    ],
)
def test_what_is_not_in_the_store_is_a_problem(
    place: str, found: str, s3: S3Server, target: Path, temporary: Path
) -> None:
    bucket = s3.new_bucket()
    s3.put(bucket, "code.zip.bak")
    url = f"s3://{place.replace('BUCKET', bucket)}"

    problems = problems_of(url, settings=s3.settings)

    assert len(problems) == 1
    assert problems[0].startswith(f"algorithm.code.url: asked for the code at {url!r}, {found}")
    with pytest.raises(StoreNotFound):
        fetch(url, target, s3.settings)


@pytest.mark.parametrize("name", ["code/", "code.zip"])
def test_wrong_credentials_are_denied_and_never_shown(
    name: str, s3: S3Server, target: Path, temporary: Path
) -> None:
    bucket = s3.new_bucket()
    wrong = replace(s3.settings, secret_key="wr0ng-s3cret")

    problems = problems_of(f"s3://{bucket}/{name}", settings=wrong)

    assert "the store refuses these credentials" in problems[0]
    assert "s3cret" not in problems[0]
    with pytest.raises(StoreDenied):
        fetch(f"s3://{bucket}/{name}", target, wrong)


def test_what_trainignore_names_is_no_code(folder: Path, target: Path) -> None:
    (folder / "data" / "deep").mkdir(parents=True)
    (folder / "data" / "deep" / "1.png").write_text("x")
    (folder / "pkg" / "notes.log").write_text("x")
    (folder / "pkg" / "kept.log").write_text("x")
    (folder / ".trainignore").write_text("# no code\n\n/data/\n*.log\n!kept.log\nempty/\n")

    fetch(folder, target)

    assert tree_of(target) == ["pkg", "pkg/a b.py", "pkg/kept.log", "run.sh", "train.py"]


@pytest.mark.parametrize("content", [b"!\n", b"\xff\xfe"])
def test_a_trainignore_that_cannot_be_understood_is_told(
    folder: Path, target: Path, content: bytes
) -> None:
    (folder / ".trainignore").write_bytes(content)

    assert "asked for patterns as in .gitignore in " in refusal_of(folder, target)


def test_what_is_ignored_does_not_count(folder: Path, target: Path) -> None:
    (folder / "many").mkdir()
    for i in range(1025):
        (folder / "many" / str(i)).touch()
    (folder / ".trainignore").write_text("many/\n")

    assert fetch(folder, target).num_entries == 5
