from pathlib import Path

import pytest

from trainjob.algorithm import Code, CommandAlgorithm, ScriptAlgorithm
from trainjob.source import code_problems
from trainjob.startup import startup_problems


@pytest.fixture
def code(tmp_path: Path) -> Path:
    code = tmp_path / "code"
    (code / "pkg" / "deep").mkdir(parents=True)
    for name in (
        "train.py",
        "compiled.pyc",
        "pkg/main.py",
        "pkg/deep/eval.py",
        "start.sh",
        "-x.py",
    ):
        (code / name).write_text("#!/bin/sh\n")
    (code / "run").write_text("#!/bin/sh\n")
    (code / "run").chmod(0o755)
    (code / "folder.py").mkdir()
    (code / "folder.py" / "data.txt").touch()
    (code / "linked.py").symlink_to("pkg/main.py")
    return code


def boot_file_problems(boot_file: str, code: Path) -> list[str]:
    algorithm = ScriptAlgorithm(code=Code(url=str(code)), boot_file=boot_file)
    return [str(problem) for problem in code_problems(algorithm, None)]


def command_problems(command: str, code: Path, search_path: str | None = None) -> list[str]:
    algorithm = CommandAlgorithm(kind="command", code=Code(url=str(code)), command=command)
    return [str(problem) for problem in code_problems(algorithm, None, search_path)]


@pytest.mark.parametrize(
    "boot_file",
    ["train.py", "./train.py", "compiled.pyc", "pkg/main.py", "pkg/../train.py", "linked.py"],
)
def test_a_python_file_in_the_code_can_be_booted(boot_file: str, code: Path) -> None:
    assert boot_file_problems(boot_file, code) == []


OUT = "found a path out of the code folder; name a Python file by its path below the code folder"
NO_PYTHON = (
    "found a name that does not end in .py or .pyc; name a Python file by its path below the code "
    "folder, or use kind: command for another language"
)


@pytest.mark.parametrize(
    ("boot_file", "rest"),
    [
        ("/etc/train.py", OUT),
        ("../code/train.py", OUT),
        ("pkg/../../other.py", OUT),
        ("start.sh", NO_PYTHON),
        ("train.PY", NO_PYTHON),
        ("train", NO_PYTHON),
        ("-x.py", "found a name that starts with -; rename it"),
        ("folder.py", "found a folder of that name; put it there, or name another file"),
        ("main.py", "found no such file in the code; did you mean 'pkg/main.py'?"),
        ("src/eval.py", "found no such file in the code; did you mean 'pkg/deep/eval.py'?"),
        ("trian.py", "found no such file in the code; did you mean 'train.py'?"),
        ("zzz/qqqqq.py", "found no such file in the code; put it there, or name another file"),
    ],
)
def test_a_boot_file_that_cannot_be_started_is_a_problem(
    boot_file: str, rest: str, code: Path
) -> None:
    assert boot_file_problems(boot_file, code) == [
        f"algorithm.boot_file: asked for the boot file {boot_file!r}, {rest}"
    ]


def test_a_boot_file_in_what_is_not_copied_is_not_there(code: Path) -> None:
    (code / "__pycache__").mkdir()
    (code / "__pycache__" / "train.cpython-311.pyc").touch()

    assert (
        "no such file in the code"
        in boot_file_problems("__pycache__/train.cpython-311.pyc", code)[0]
    )


def test_a_boot_file_that_became_a_link_out_of_the_code_is_a_problem(code: Path) -> None:
    (code / "escape.py").symlink_to("/etc/passwd")
    algorithm = ScriptAlgorithm(code=Code(url=str(code)), boot_file="escape.py")

    assert [str(problem) for problem in startup_problems(algorithm, code, ["escape.py"])] == [
        "algorithm.boot_file: asked for the boot file 'escape.py', "
        "found a link out of the code folder; put the file itself into the folder"
    ]


@pytest.mark.parametrize(
    "command",
    [
        "sh start.sh",
        "sh 'start.sh' --fast",
        "sh -c 'echo hi'",
        "./run --now",
        "/bin/sh start.sh",
        "python3 -m pkg.main",
        "env A=1 ./run",
        "sh -c './run && ./run > log 2>&1; echo $A'",
        'sh start.sh "$A" \'&&\' "a;"',
        "sh start.sh --weights=a>b",
        'sh start.sh "He said \\"stop; go\\" now" it\\\'s \'a; b\' \\;',
        "sh start.sh --pad_token <pad> --end </s>",
    ],
)
def test_a_command_that_can_be_started_is_no_problem(command: str, code: Path) -> None:
    assert command_problems(command, code) == []


@pytest.mark.parametrize(
    ("command", "rest"),
    [
        (
            "sh 'start.sh",
            "found text that cannot be split into words (No closing quotation); "
            "close the quotes, or write \\ twice",
        ),
        ("'' --x", "found no program in it; start it with the program to run"),
        (
            "no-such-program-1 --x",
            "found no program 'no-such-program-1' on PATH; "
            "install it on this machine, or add it to the code",
        ),
        ("run --x", "found 'run' in the code folder but not on PATH; write './run'"),
        (
            "./start.sh",
            "found a file './start.sh' that is not executable; "
            "make it executable, or write its interpreter first, such as 'sh ./start.sh'",
        ),
        *(
            (
                f"./run {words}",
                f"found {word!r}, which only a shell understands; no shell runs it; "
                "write it into a script and say sh start.sh, or say sh -c '…'; "
                "put it in quotes if the program is to have it as it is",
            )
            for words, word in [
                ("&& ./run", "&&"),
                ("a | tee log", "|"),
                ("a; ./run", "a;"),
                ("> log", ">"),
                ("2>&1", "2>&1"),
                ("&", "&"),
                ("--data $DATA_URL", "$DATA_URL"),
                ("--data ${DATA_URL}", "${DATA_URL}"),
            ]
        ),
        (
            "A=1 ./run",
            "found 'A=1' where its program should be; no shell runs it; "
            "set variables by env in the job",
        ),
        ("./strat.sh", "found no file './strat.sh'; did you mean 'start.sh'?"),
        (
            "/no/such/qqqqqqqq",
            "found no file '/no/such/qqqqqqqq'; correct the path, which starts at the code folder",
        ),
        ("sh strat.sh", "found no file 'strat.sh' in the code; did you mean 'start.sh'?"),
        (
            "bash zzzzzzzzzz",
            "found no file 'zzzzzzzzzz' in the code; "
            "correct the path, which starts at the code folder",
        ),
    ],
)
def test_a_command_that_cannot_be_started_is_a_problem(command: str, rest: str, code: Path) -> None:
    assert command_problems(command, code) == [
        f"algorithm.command: asked for the command {command!r}, {rest}"
    ]


def test_a_program_is_looked_up_on_the_path_of_the_ranks(code: Path, tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "mytool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)

    assert command_problems("mytool", code, search_path=str(tool.parent)) == []
    assert "no program 'mytool' on PATH" in command_problems("mytool", code)[0]


def test_text_that_is_wrong_by_itself_is_told_without_the_code(tmp_path: Path) -> None:
    gone = tmp_path / "gone"

    assert len(command_problems("sh 'start.sh", gone)) == 2
    assert len(command_problems("no-such-program-1", gone)) == 1
    assert len(boot_file_problems("../train.py", gone)) == 2
    assert len(boot_file_problems("train.py", gone)) == 1
