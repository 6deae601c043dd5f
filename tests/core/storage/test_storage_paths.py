"""Which keys can be files below a folder."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainjob.errors import UnsafeKey
from trainjob.storage.manifest import FileRecord, fingerprint
from trainjob.storage.own_files import RECEIPT, SUCCESS
from trainjob.storage.paths import check_paths


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/etc/passwd", "is an absolute path"),
        ("a//b", "has an empty part"),
        ("a/", "ends in / as folders do, and holds bytes"),
        ("", "is that of the folder itself, and holds bytes"),
        ("..", "has . or .. as a part"),
        ("a/../../b", "has . or .. as a part"),
        ("./a", "has . or .. as a part"),
        ("a\0b", "holds a NUL"),
        ("a/" + "ü" * 128, "more than 255 bytes"),
        ("\udcff", "is not UTF-8"),
    ],
)
def test_an_unsafe_key_is_refused_by_name(path, reason):
    with pytest.raises(UnsafeKey) as caught:
        check_paths("s3://b/x/", ["fine", path])

    assert reason in str(caught.value)
    assert repr(path) in str(caught.value)
    assert str(caught.value).startswith("s3://b/x/: ")


@pytest.mark.parametrize("path", ["..a", "a..", ".hidden", " ", "~", "a\\b", "-rf", "x" * 255])
def test_odd_names_that_are_files_are_kept(path):
    check_paths("s3://b/x/", [path, f"folder/{path}"])


@pytest.mark.parametrize(
    ("files", "folders", "named"),
    [
        (["a", "a/b"], [], "'a' is both"),
        (["a/b/c", "a/b"], [], "'a/b' is both"),
        (["a"], ["a"], "'a' is both"),
        (["a", "a"], [], "'a' is there twice"),
    ],
)
def test_keys_that_would_hide_one_another_are_refused(files, folders, named):
    with pytest.raises(UnsafeKey, match=named):
        check_paths("s3://b/x/", files, folders)


@given(st.lists(st.text(alphabet="./\0ab", max_size=8), max_size=4))
def test_what_is_allowed_stays_below_the_folder(tmp_path_factory, paths):
    root = tmp_path_factory.getbasetemp() / "root"
    try:
        check_paths("s3://b/x/", paths)
    except UnsafeKey:
        return

    for path in paths:
        assert (root / path).resolve().is_relative_to(root.resolve())
        assert str((root / path).resolve().relative_to(root.resolve())) == path


@given(st.lists(st.tuples(st.text(), st.integers(0), st.text("0123456789abcdef")), max_size=4))
def test_a_fingerprint_is_a_digest_of_rows_in_json(rows):
    lines = "".join(json.dumps(row) + "\n" for row in sorted(rows))

    found = fingerprint(FileRecord(*row) for row in rows)

    assert found == f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def test_a_fingerprint_depends_on_every_part_and_not_on_the_order():
    one, two = FileRecord("a", 1, "00"), FileRecord("b", 2, "11")

    prints = {
        fingerprint([one, two]),
        fingerprint([one]),
        fingerprint([]),
        fingerprint([FileRecord("x", 1, "00"), two]),
        fingerprint([FileRecord("a", 3, "00"), two]),
        fingerprint([FileRecord("a", 1, "22"), two]),
        fingerprint([FileRecord('a", 1, "00"]\n["b', 1, "00")]),
    }

    assert fingerprint([two, one]) == fingerprint([one, two])
    assert len(prints) == 7
    assert all(value.startswith("sha256:") for value in prints)


def test_a_fingerprint_leaves_out_what_an_upload_of_ours_writes_itself():
    data = FileRecord("a", 1, "00")
    receipt, success = FileRecord(RECEIPT, 9, "22"), FileRecord(SUCCESS, 0, "33")

    assert fingerprint([data, receipt, success]) == fingerprint([data])
    assert fingerprint([data, receipt]) == fingerprint([data])


@pytest.mark.parametrize(
    "others",
    [
        [FileRecord(SUCCESS, 0, "33")],  # Hadoop writes it, too
        [FileRecord(RECEIPT, 9, "22"), FileRecord(SUCCESS, 1, "33")],
        [FileRecord(RECEIPT, 9, "22"), FileRecord("_trainjob/other", 1, "33")],
        [FileRecord(RECEIPT, 9, "22"), FileRecord(f"deeper/{RECEIPT}", 1, "33")],
    ],
)
def test_a_fingerprint_leaves_out_nothing_else(others):
    data = FileRecord("a", 1, "00")

    assert fingerprint([data, *others]) != fingerprint([data])
