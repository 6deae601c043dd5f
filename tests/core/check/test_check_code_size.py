"""Code that is larger than code is: a warning below the limits, which a machine may set."""

from pathlib import Path

import pytest

from tests.core.check.test_check_arguments import PARSER, USES, check
from tests.jobs import make_job
from trainjob.code_limits import MODELARTS_LIMITS, CodeLimits, limits_of_machine
from trainjob.errors import Problem, SourceError
from trainjob.registry.folder import registry_of_machine
from trainjob.registry.register import register_algorithm

WORKS = PARSER + "args = parser.parse_args()\n" + USES
MEGABYTE = 10**6


def problems(folder: Path) -> tuple[Problem, ...]:
    return check(folder, WORKS, hyperparameters={}).problems


def put(file: Path, size_bytes: int) -> None:
    """Make a file that takes no room on the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as sparse:
        sparse.truncate(size_bytes)


@pytest.mark.parametrize(
    ("sizes", "ignored", "expected"),
    [
        ([99] * 5, "", []),
        ([99] * 6, "", ["code-data"]),
        ([101], "", ["code-data"]),
        ([3000, 101], "*.bin\n", []),
    ],
    ids=["little", "much", "one-large", "ignored"],
)
def test_data_in_the_code_folder_is_a_warning(
    tmp_path: Path, sizes: list[int], ignored: str, expected: list[str]
) -> None:
    make_job(tmp_path)
    (tmp_path / "code" / ".trainignore").write_text(ignored)
    for number, size in enumerate(sizes):
        put(tmp_path / "code" / f"{number}.bin", size * MEGABYTE)

    found = problems(tmp_path)

    assert [problem.id for problem in found] == expected
    assert {problem.level for problem in found} <= {"warning"}


def test_the_warning_of_data_in_the_code_folder_says_where_it_belongs(tmp_path: Path) -> None:
    make_job(tmp_path, WORKS)
    put(tmp_path / "code" / "train_images" / "data.tar", 3 << 30)

    [problem] = problems(tmp_path)

    assert str(problem) == (
        "algorithm.code.url: asked for a folder of code, found 3.0 GiB in 2 files, the largest "
        "being 'train_images/data.tar' (3 GiB); every run copies all of it: give data and weights "
        "as inputs, which stay in the cache, and name in a file .trainignore what of a folder "
        "of this machine is no code"
    )


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("TRAINJOB_CODE_MAX_FILES", "2", []),
        ("TRAINJOB_CODE_MAX_FILES", "1", ["algorithm-code-url"]),
        ("TRAINJOB_CODE_MAX_SIZE", "100 B", ["algorithm-code-url"]),
        ("TRAINJOB_CODE_MAX_SIZE", "much", ["trainjob-code-max-size"]),
    ],
)
def test_a_check_knows_the_limits_that_its_machine_sets(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    expected: list[str],
) -> None:
    make_job(tmp_path)
    put(tmp_path / "code" / "another.py", 0)
    monkeypatch.setenv(variable, value)

    assert [(found.level, found.id) for found in problems(tmp_path)] == [
        ("error", name) for name in expected
    ]


def test_an_algorithm_of_many_files_can_be_saved_where_the_machine_allows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_job(tmp_path)
    put(tmp_path / "code" / "another.py", 0)
    file = tmp_path / "algorithm.yaml"
    file.write_text("algorithm: {code: {url: code}, boot_file: train.py}\n")
    registry = registry_of_machine()

    monkeypatch.setenv("TRAINJOB_CODE_MAX_FILES", "1")
    with pytest.raises(SourceError, match="code of at most 1 files and folders, found 2 in"):
        register_algorithm(registry, "copy", file, None)
    monkeypatch.setenv("TRAINJOB_CODE_MAX_FILES", "2")

    assert register_algorithm(registry, "copy", file, None).num_entries == 2


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("TRAINJOB_CODE_MAX_FILES", "4096", CodeLimits(4096, 5 << 30)),
        ("TRAINJOB_CODE_MAX_SIZE", "128MB", CodeLimits(1024, 128 * MEGABYTE)),
        ("TRAINJOB_CODE_MAX_SIZE", "", MODELARTS_LIMITS),
    ],
)
def test_a_machine_sets_one_limit_and_leaves_the_other(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: CodeLimits
) -> None:
    """Other pages of ModelArts have 4,096 files and 128 MB."""
    monkeypatch.setenv(variable, value)

    assert limits_of_machine(MODELARTS_LIMITS) == expected


@pytest.mark.parametrize("value", ["0", "-1", "many", "1e3"])
def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TRAINJOB_CODE_MAX_FILES", value)

    with pytest.raises(SourceError) as refused:
        limits_of_machine(MODELARTS_LIMITS)

    assert str(refused.value) == (
        f"TRAINJOB_CODE_MAX_FILES: asked for a number above 0, found {value!r}; write how many "
        "files and folders the code of a job may have"
    )
