"""Reading job files: the types people mean, and the place of a syntax error."""

from pathlib import Path

import pytest

from trainjob.errors import JobError
from trainjob.jobfile import read_job_file


def read(tmp_path: Path, text: str, name: str = "job.yaml") -> dict[str, object]:
    file = tmp_path / name
    file.write_text(text)
    return read_job_file(file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("1e-3", 0.001),
        ("5E3", 5000.0),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        (".5", 0.5),
        ("010", 10),
        ("0x10", 16),
        ("-3", -3),
        ("+2.5", 2.5),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2026-11-21", "2026-11-21"),
        ("~", None),
        ("", None),
        ("'3'", "3"),
        ("[1, two, 3.0]", [1, "two", 3.0]),
        ("1e", "1e"),
        ("-", "-"),
    ],
)
def test_values_have_the_types_people_mean(tmp_path: Path, text: str, expected: object) -> None:
    if text == "-":
        text = "'-'"

    value = read(tmp_path, f"key: {text}\n")["key"]

    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.yaml", "name: x\n  bad: y\n", "mapping values are not allowed here at line 2, col"),
        ("a.yaml", "name: [1, 2\n", "line 2, column 1"),
        ("a.yaml", "a: 1\nb: 2\na: 3\n", "the key 'a' is given twice at line 3, column 1"),
        ("a.yaml", "", "an empty file"),
        ("a.yaml", "- 1\n", "a list"),
        ("a.yaml", "a: !!python/object:os.system {}\n", "could not determine a constructor"),
        ("a.json", '{"a": 1,}', "line 1, column 9"),
        ("a.json", "[]", "a list"),
        ("a.json", '{"a": 1, "a": 2}', "the key 'a' is given twice"),
        ("a.yaml", "a: " + "9" * 5000, "Exceeds the limit"),
        ("a.yaml", "a: " + "[" * 5000, "values that are nested too deep"),
        ("a.json", '{"a": ' + "[" * 100000, "values that are nested too deep"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(
    tmp_path: Path, name: str, text: str, found: str
) -> None:
    with pytest.raises(JobError) as raised:
        read(tmp_path, text, name)

    assert found in str(raised.value)
    assert name in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"found no such file; check the path"):
        read_job_file(tmp_path / "absent.yaml")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(JobError, match="give a readable UTF-8 text file"):
        read_job_file(tmp_path / "job.yaml")
