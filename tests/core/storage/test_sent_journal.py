"""What was sent before, as a process finds it that comes after one that was killed."""

import json
import os
from pathlib import Path

import pytest

from trainjob.storage.journal import Journal
from trainjob.storage.listing import Entry
from trainjob.storage.manifest import FileRecord

URL = "s3://bucket/tree/"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sync" / "out.json"


def entry(path: str, version: str = "1") -> Entry:
    return Entry(path, 1, version)


def record(path: str, sha256: str = "0" * 64) -> FileRecord:
    return FileRecord(path, 1, sha256, f'"{path}"')


def journal(file: Path, url: str = URL, run_id: str = "run-1") -> Journal:
    return Journal(file, url, run_id)


def noting(file: Path, *paths: str) -> Journal:
    noted = journal(file)
    for path in paths:
        noted.remember(entry(path), record(path))
        noted.save()
    return noted


def test_what_was_sent_is_known_to_the_next_process(file):
    noting(file, "a", "new\nline")

    again = journal(file)

    known = again.record(entry("a"))
    assert known == record("a")
    assert known.etag == '"a"'
    assert again.record(entry("new\nline")) == record("new\nline")
    assert again.record(entry("a", version="2")) is None


@pytest.mark.parametrize("others", [{"url": "s3://bucket/other/"}, {"run_id": "run-2"}])
def test_what_another_run_sent_or_elsewhere_does_not_count(file, others):
    noting(file, "a")

    assert not journal(file, **others).knows("a")


def test_a_save_writes_only_what_is_new(file):
    """As of a million files, of which each group of some thousands is noted."""
    noted = noting(file, *map(str, range(100)))
    with file.open() as opened:
        opened.seek(0, os.SEEK_END)

        noted.remember(entry("new"), record("new"))
        noted.save()
        noted.save()

        assert len(opened.readlines()) == 1
    assert all(journal(file).knows(path) for path in ("0", "99", "new"))


def test_a_file_that_is_sent_again_and_again_does_not_fill_the_journal(file):
    noted = noting(file, "kept")

    for i in range(5000):
        noted.forget(["log"])
        noted.remember(entry("log", str(i)), record("log"))
        noted.save()

    assert file.stat().st_size < 300_000
    again = journal(file)
    assert again.knows("kept")
    assert again.record(entry("log", "4999")) == record("log")


def test_what_was_forgotten_is_not_known_again(file):
    noted = noting(file, "a", "b")
    noted.forget(["a", "never"])
    noted.save()
    assert [journal(file).knows(path) for path in ("a", "b")] == [False, True]

    noted.clear()

    assert not journal(file).knows("b")


def test_what_was_announced_counts_until_it_was_sent_or_forgotten(file):
    noted = noting(file, "a")
    noted.announce([record("a", "1" * 64), record("a", "2" * 64), record("b", "3" * 64)])

    again = journal(file)
    assert all(again.has_sent("a", sha256 * 64) for sha256 in "012")
    assert again.has_sent("b", "3" * 64)

    noted.remember(entry("a"), record("a", "2" * 64))
    noted.forget(["b"])
    noted.save()
    again = journal(file)
    assert [again.has_sent("a", sha256 * 64) for sha256 in "012"] == [False, False, True]
    assert not again.has_sent("b", "3" * 64)


@pytest.mark.parametrize("torn", [1, 20, -1])
def test_a_line_that_was_cut_off_takes_nothing_else_with_it(file, torn):
    """Neither the lines before it nor those that the next process adds."""
    noting(file, "a", "b")
    *lines, last = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines) + last[:torn])

    noting(file, "c", "d")

    again = journal(file)
    assert [again.knows(path) for path in "acd"] == [True, True, True]


def test_a_journal_that_somebody_removed_is_written_as_a_whole(file):
    noted = noting(file, "a")
    file.unlink()

    noted.remember(entry("b"), record("b"))
    noted.save()

    assert [journal(file).knows(path) for path in "ab"] == [True, True]


@pytest.mark.parametrize("content", ["", "{", "[]", "null\n", '{"whose": 1}', "\x00\x00"])
def test_a_journal_that_cannot_be_read_is_an_empty_one(file, content):
    file.parent.mkdir()
    file.write_text(content)

    noted = noting(file, "a")

    assert noted.knows("a")
    assert journal(file).knows("a")


def test_a_disk_that_takes_no_journal_is_no_error_and_later_all_is_there(tmp_path):
    file = tmp_path / "sync" / "out.json"
    file.mkdir(parents=True)
    noted = noting(file, "a")
    file.rmdir()

    noted.remember(entry("b"), record("b"))
    noted.save()

    assert [journal(file).knows(path) for path in "ab"] == [True, True]


@pytest.mark.parametrize("run_id", ["run-1", "run-2"])
def test_a_run_goes_on_from_the_journal_of_an_older_trainjob(file, run_id):
    files = {"a": ["1", 1, "0" * 64, '"a"'], "older": ["1", 1, "0" * 64]}
    content = {"whose": [URL, "run-1"], "files": files, "announced": {"b": ["1" * 64]}}
    file.parent.mkdir()
    file.write_text(json.dumps(content))

    journal(file, run_id=run_id).save()

    found, is_own = journal(file, run_id=run_id), run_id == "run-1"
    assert [found.record(entry(path)) for path in ("a", "older")] == (
        [record("a"), record("older")] if is_own else [None, None]
    )
    assert found.has_sent("b", "1" * 64) == is_own
