"""Scripts that work are not refused, however they are written: each is really run."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.core.check.test_check_arguments import check
from tests.jobs import make_job

MADE = "import argparse\np = argparse.ArgumentParser()\n"
LR = "p.add_argument('--lr', type=float)\n"
READ = "print(p.parse_args())\n"
OWN_PARSE = "        return SimpleNamespace(**vars(self.p.parse_args()), extra=1)\n"
MERGE = "def merge(a, c):\n    for k, v in c.items():\n        setattr(a, k, v)\n"
HERE = "import os, sys\nsys.stderr.write('')\n"

DECLARED_OTHERWISE: dict[str, str] = {
    "another name of add_argument": f"{MADE}add = p.add_argument\nadd('--lr')\n{READ}",
    "partial": f"import functools\n{MADE}functools.partial(p.add_argument, '--lr')()\n{READ}",
    "of a group": f"{MADE}g = p.add_argument_group('x').add_argument\ng('--lr')\n{READ}",
    "argv of another name": f"import sys as s\ns.argv = s.argv[:1]\n{MADE}{READ}",
    "argv imported": f"from sys import *\ndel argv[1:]\n{MADE}{READ}",
    "exec": f"{MADE}exec(open('extra.py').read())\n{READ}",
    "import_module": f"import importlib\n{MADE}importlib.import_module('lib').add(p)\n{READ}",
    "__import__": f"{MADE}__import__('lib').add(p)\n{READ}",
    "error replaced": f"{MADE}p.error = lambda message: None\np.parse_args()\n",
    "parse_args replaced": (
        f"{MADE}argparse.ArgumentParser.parse_args = lambda self: None\np.parse_args()\n"
    ),
    "error replaced by name": (
        "import argparse\nsetattr(argparse.ArgumentParser, 'error', lambda *_: None)\n"
        f"{MADE}p.parse_args()\n"
    ),
    "SystemExit suppressed": (
        f"import contextlib\n{MADE}with contextlib.suppress(SystemExit):\n    p.parse_args()\n"
    ),
    "SystemExit caught": f"{MADE}try:\n    p.parse_args()\nexcept SystemExit:\n    pass\n",
    "all caught": f"{MADE}try:\n    p.parse_args()\nexcept:\n    pass\n",
    "own context": (
        "class C:\n    def __enter__(self): pass\n    def __exit__(self, *a): return True\n"
        f"{MADE}with C():\n    p.parse_args()\n"
    ),
}
LEAVES_BEFORE: dict[str, str] = {
    "by a function": f"import sys\ndef die():\n    sys.exit()\ndie()\n{MADE}p.parse_args()\n",
    "in a class": (
        f"import sys\nclass A:\n    def run(self): sys.exit()\nA().run()\n{MADE}p.parse_args()\n"
    ),
    "by another name": f"from sys import exit as bye\nbye()\n{MADE}p.parse_args()\n",
    "while imported": f"import leaves\n{MADE}p.parse_args()\n",
    "re-executed": (
        "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', ''])\n"
        f"{MADE}p.parse_args()\n"
    ),
}
DECLARED_OTHERWISE |= {
    "own add_argument": (
        "import argparse\nclass P:\n    def __init__(self):\n"
        "        self.p = argparse.ArgumentParser()\n    def add_argument(self, name):\n"
        "        self.p.add_argument('--' + name)\n"
        "p = P()\np.add_argument('lr')\np.p.parse_args()\n"
    ),
    "unknown arguments are used": (
        f"{MADE}a, rest = p.parse_known_args()\nfor word in rest:\n    print(word)\n"
    ),
    "a parser that nobody calls": "import converter\n",
    "parents": (
        "import argparse\nbase = argparse.ArgumentParser(add_help=False)\n"
        "base.add_argument('--lr')\nother = argparse.ArgumentParser(parents=[base])\n"
        "other.add_argument('--must', required=True)\n"
        "argparse.ArgumentParser(parents=[base]).parse_args()\n"
    ),
}
TYPES_OF_ITS_OWN: dict[str, str] = {
    "int defined": f"def int(x): return float(x)\n{MADE}p.add_argument('--lr', type=int)\n{READ}",
    "int imported": f"from lib import int\n{MADE}p.add_argument('--lr', type=int)\n{READ}",
    "int by star": f"from lib import *\n{MADE}p.add_argument('--lr', type=int)\n{READ}",
    "int registered": (
        f"{MADE}p.register('type', int, float)\np.add_argument('--lr', type=int)\n{READ}"
    ),
}
SET_OTHERWISE: dict[str, str] = {
    "defaults of a mapping": "p.set_defaults(**{'foo': 1})\na = p.parse_args()\nprint(a.foo)\n",
    "setattr in a function": f"{MERGE}a = p.parse_args()\nmerge(a, {{'foo': 1}})\nprint(a.foo)\n",
    "setattr in a module": (
        "from lib import merge\na = p.parse_args()\nmerge(a, {'foo': 1})\nprint(a.foo)\n"
    ),
    "vars": "a = p.parse_args()\nd = vars(a)\nd['foo'] = 1\nd.update(x=2)\nprint(a.foo, a.x)\n",
    "parse_args of its own": (
        "from types import SimpleNamespace\nclass Options:\n    def __init__(self): self.p = p\n"
        f"    def parse_args(self):\n{OWN_PARSE}print(Options().parse_args().extra)\n"
        "o = Options()\na = o.parse_args()\nprint(a.extra)\n"
    ),
    "a property of Namespace": (
        "argparse.Namespace.foo = property(lambda s: 1)\na = p.parse_args()\nprint(a.foo)\n"
    ),
    "asked with in": "a = p.parse_args()\nif 'foo' in a: print(a.foo)\n",
    "tried": "a = p.parse_args()\ntry:\n    a.foo\nexcept AttributeError:\n    pass\n",
}
MODULES_OTHERWISE: dict[str, str] = {
    "suppressed": "import contextlib as c\nwith c.suppress(ImportError):\n    import absent\n",
    "a context of its own": (
        "class C:\n    def __enter__(self): pass\n    def __exit__(self, *a): return True\n"
        "with C():\n    import absent\n"
    ),
    "sys.modules by from": "from sys import modules\nmodules['absent'] = 1\nimport absent\n",
    "sys.path by from": "from sys import path\npath.insert(0, 'libs')\nimport elsewhere\n",
    "sys handed on": "import sys\ns = sys\ns.path.insert(0, 'libs')\nimport elsewhere\n",
    "addsitedir": "from site import addsitedir\naddsitedir('libs')\nimport elsewhere\n",
    "after a function that leaves": "def die():\n    raise SystemExit\ndie()\nimport absent\n",
    "after a method that leaves": (
        "class A:\n    def run(self): raise SystemExit\nA().run()\nimport absent\n"
    ),
    "after an imported function that leaves": "from lib import bye\nbye()\nimport absent\n",
    "after execv": (
        "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', ''])\nimport absent\n"
    ),
    "a long name": f"try:\n    import {'a' * 300}\nexcept ImportError:\n    pass\n",
}
HELPERS = {
    "extra.py": "p.add_argument('--lr')\n",
    "lib.py": (
        "import sys\ndef int(x): return float(x)\ndef add(p): p.add_argument('--lr')\n"
        f"def bye(): sys.exit()\n{MERGE}"
    ),
    "leaves.py": "import sys\nsys.exit()\n",
    "converter.py": (
        f"def main():\n    {MADE.replace(chr(10), chr(10) + '    ')}"
        "p.add_argument('src')\n    p.parse_args()\n"
    ),
    "libs/elsewhere.py": "",
}


def problems_of(folder: Path, script: str) -> list[tuple[str, str]]:
    """Run the script as a job would, to see that it works, and return what the check says."""
    changes: dict[str, Any] = {"inputs": [], "outputs": [], "hyperparameters": {"lr": 0.1}}
    make_job(folder)
    for name, text in HELPERS.items():
        (folder / "code" / name).parent.mkdir(exist_ok=True)
        (folder / "code" / name).write_text(text)

    problems = check(folder, script, **changes).problems

    command = [sys.executable, "train.py", "--lr", "0.1"]
    ended = subprocess.run(command, cwd=folder / "code", capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, ended.stderr)
    return [(problem.level, problem.id) for problem in problems]


@pytest.mark.parametrize("name", DECLARED_OTHERWISE)
def test_a_declaration_that_the_text_does_not_show_is_no_finding(tmp_path: Path, name: str) -> None:
    assert problems_of(tmp_path, DECLARED_OTHERWISE[name]) == []


@pytest.mark.parametrize("name", LEAVES_BEFORE)
def test_a_script_that_may_leave_before_it_parses_is_not_refused(tmp_path: Path, name: str) -> None:
    assert problems_of(tmp_path, LEAVES_BEFORE[name]) == [("warning", "script-undeclared-argument")]


@pytest.mark.parametrize("name", TYPES_OF_ITS_OWN)
def test_a_type_that_is_not_that_of_python_is_no_finding(tmp_path: Path, name: str) -> None:
    assert problems_of(tmp_path, TYPES_OF_ITS_OWN[name]) == []


@pytest.mark.parametrize("name", SET_OTHERWISE)
def test_an_attribute_that_may_be_set_is_no_finding(tmp_path: Path, name: str) -> None:
    assert problems_of(tmp_path, MADE + LR + SET_OTHERWISE[name]) == []


@pytest.mark.parametrize("name", MODULES_OTHERWISE)
def test_a_module_that_may_never_be_imported_is_no_finding(tmp_path: Path, name: str) -> None:
    assert problems_of(tmp_path, MODULES_OTHERWISE[name]) == []


ODD = {
    "nargs of nothing": "p.add_argument('--z', nargs=0)\n    ",
    "nargs of a word": "p.add_argument('--z', nargs='foo')\n    ",
    "very many words": "p.add_argument('--z', nargs=10**15)\n    ".replace("10**15", "9" * 15),
    "a flag and a name": "p.add_argument('--x', 'y')\n    ",
}


@pytest.mark.parametrize("name", ODD)
def test_a_declaration_that_cannot_be_made_does_not_end_the_check(
    tmp_path: Path, name: str
) -> None:
    script = "import argparse\ndef other():\n    p = argparse.ArgumentParser()\n    "

    assert problems_of(tmp_path, f"{script}{ODD[name]}p.parse_args()\n") == []


def test_a_script_that_is_too_large_or_too_deep_is_said_not_to_be_checked(tmp_path: Path) -> None:
    large = check(tmp_path, f"X = '{'a' * 2_100_000}'\n")
    deep = check(tmp_path, f"x = {'+'.join(['1'] * 3000)}\nif {'not ' * 900}x: pass\n")

    assert large.errors == deep.errors == []
    assert any("2,000,000 bytes" in line for line in large.not_checked)


@pytest.mark.parametrize(("num_disturbed", "is_checked"), [(2, True), (99, False)])
def test_a_script_is_parsed_again_if_another_thread_came_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_disturbed: int, is_checked: bool
) -> None:
    parse, left = ast.parse, [SystemError("depth mismatch (before=42, after=96)")] * num_disturbed

    def disturbed(text: str) -> ast.Module:
        if left:
            raise left.pop()
        return parse(text)

    with monkeypatch.context() as patch:
        patch.setattr(ast, "parse", disturbed)  # CPython's threads seldom meet
        findings = check(tmp_path, "import nothing_of_this_name\n")

    assert [problem.id for problem in findings.errors] == ["script-import-missing"] * is_checked
    assert any("depth mismatch" in line for line in findings.not_checked) == (not is_checked)


def test_a_requirement_that_cannot_be_read_does_not_end_the_check(tmp_path: Path) -> None:
    make_job(tmp_path)
    lines = f"-r a\0b\n-r {'a' * 300}\nfoo; extra == 'dev'\nfoo; python_version ~= 'x'\n"
    (tmp_path / "code" / "requirements.txt").write_text(lines)

    findings = check(tmp_path, "print('hello')\n")

    assert findings.errors == []
    assert any("-r a" in line for line in findings.not_checked)


def test_what_another_python_runs_is_said_not_to_be_checked(tmp_path: Path) -> None:
    python = tmp_path / "python3"  # beside it there may be other packages
    python.symlink_to(sys.executable)
    code = {"url": str(make_job(tmp_path)["algorithm"]["code"]["url"])}
    algorithm = {"kind": "command", "code": code, "command": f"{python} train.py"}

    findings = check(tmp_path, "import absent_here\nprint 'hello'\n", algorithm=algorithm)

    assert [p.id for p in findings.errors if p.id.startswith("script")] == []
    assert any(f"`{python} train.py`" in line for line in findings.not_checked)


@pytest.mark.parametrize(("module", "package"), [("cv2", "opencv-python"), ("skimage", "scikit-")])
def test_the_package_that_has_a_module_is_named(tmp_path: Path, module: str, package: str) -> None:
    [problem] = check(tmp_path, f"import {module}\n", inputs=[], outputs=[]).errors

    assert f"pip install {package}" in problem.do
