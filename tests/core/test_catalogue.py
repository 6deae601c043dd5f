"""Every rule is shown a text that Python, torch or a shell really prints."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainjob.catalogue import Signs, catalogue_markdown, find_rule, rules

ROOT = Path(__file__).parents[2]
EXAMPLES = yaml.safe_load((Path(__file__).with_name("failure_examples.yaml")).read_text())


def raised(*texts: str) -> Signs:
    return Signs("exception", texts)


def left(*lines: str) -> Signs:
    return Signs("exit", ("\n".join(lines),))


def signs_of(example: dict[str, Any]) -> Signs:
    if "raised" in example:
        return Signs("exception", (example["raised"],), oom_killed="oom_killed" in example)
    name = example.get("signal")
    ended = example.get("ended", "signal" if name else "exit")
    return Signs(ended, (example.get("wrote", ""),), name, "oom_killed" in example)


@pytest.mark.parametrize(
    ("name", "example"),
    [(name, example) for name, examples in EXAMPLES.items() for example in examples],
)
def test_what_is_really_said_is_named_by_its_rule_and_no_earlier_one(name, example):
    found = find_rule(signs_of(example))

    assert found is not None
    assert found.name == name
    assert not re.search(r"\{\w+\}|None", found.meaning + found.next_step)


def test_every_rule_has_an_example_and_a_name_of_its_own():
    names = [rule.name for rule in rules()]

    assert sorted(names) == sorted(EXAMPLES)
    assert len(names) >= 30


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_every_rule_says_what_happened_and_what_to_do(rule):
    assert rule.meaning.endswith(".")
    assert rule.next_step.endswith(".")
    assert rule.says or rule.ended or rule.signal
    placeholders = set(re.findall(r"\{(\w+)\}", rule.meaning + rule.next_step))
    assert placeholders == set(re.compile(rule.says or "").groupindex)


def test_what_was_matched_is_told():
    missing = find_rule(raised("ModuleNotFoundError: No module named 'cv2'"))
    undeclared = find_rule(raised("AttributeError: 'Namespace' object has no attribute 'lr'"))

    assert missing is not None
    assert "imports cv2," in missing.meaning
    assert undeclared is not None
    assert 'parser.add_argument("--lr", …)' in undeclared.next_step


@pytest.mark.parametrize(
    "signs",
    [
        raised("ValueError: no such class"),
        raised("AttributeError: 'NoneType' object has no attribute 'shape'"),
        raised("AssertionError"),
        raised("KeyError: 'HCCL_WHITELIST_DISABLE'"),
        raised("KeyError: 'Xid'"),
        raised("ValueError: initialize failed: set CANNOT be empty"),
        raised("subprocess.CalledProcessError: Command '['x']' returned non-zero exit status 1."),
        left("epoch 1 loss 0.31", "epoch 2 loss 0.28"),
        left(""),
        Signs("start", ("no such option",)),
    ],
)
def test_what_has_no_name_is_not_given_one(signs):
    assert find_rule(signs) is None


@pytest.mark.parametrize(
    "lines",
    [
        "loss 0.3 info: nothing",
        "training loss inference done",
        "loaded 12 images, found 0 duplicates",
        "UserWarning: torch.cuda is not available, falling back to cpu",
        "saved checkpoint: 3 files",
    ],
)
def test_lines_of_a_healthy_training_name_nothing(lines):
    assert find_rule(left(lines)) is None


def test_the_exception_goes_before_what_it_came_from():
    signs = raised("MemoryError", "KeyError: 'RANK'\nMemoryError")

    found = find_rule(signs)

    assert found is not None
    assert found.name == "out of memory"


def test_the_cause_names_an_exception_that_has_no_name():
    signs = raised("RuntimeError: could not begin", "FileNotFoundError: [Errno 2] No such file\n")

    found = find_rule(signs)

    assert found is not None
    assert found.name == "file not found"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_no_text_keeps_a_rule_searching(rule):
    for part in re.findall(r"[\w /<]{4,}", rule.says or ""):
        text = part * (20_000 // len(part))
        begun = time.process_time()

        re.search(rule.says, text, re.MULTILINE)

        assert time.process_time() - begun < 0.25


@pytest.mark.parametrize(
    "text", ["x" * 10**6, "x " * 10**6, "x: " * 10**6, "/dev/shm" * 10**5, "gradient " * 10**5]
)
def test_a_text_of_any_length_is_searched_quickly(text):
    begun = time.process_time()

    assert find_rule(raised(text)) is None

    assert time.process_time() - begun < 0.5


def test_the_page_is_that_of_the_catalogue():
    page = ROOT / "docs" / "failures.md"

    assert page.read_text() == catalogue_markdown(), (
        "run: python -c 'from trainjob.catalogue import catalogue_markdown as m; "
        'print(m(), end="")\' > docs/failures.md'
    )
