import logging
import time
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainjob.job import TrainingJob
from trainjob.metrics.patterns import MetricPatterns, metric_problems, parse_number, unfound


@dataclass(frozen=True)
class Named:
    name: str
    regex: str


LOSS = Named("loss", r"loss[= ]+([0-9.e+-]+)")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("-1.5E+2", -150.0),
        ("inf", float("inf")),
        ("-Infinity", float("-inf")),
        ("1,234.5", 1234.5),
        ("12,345,678", 12345678.0),
        (" 97.3% ", 97.3),
        ("0.5.", 0.5),
        ("0.5,", 0.5),
    ],
)
def test_numbers_are_read_as_programs_print_them(text, number):
    assert parse_number(text) == number


def test_nan_is_a_number():
    number = parse_number("nan")

    assert number != number


@pytest.mark.parametrize("text", ["", "high", "0,5", "1.2.3", "1,23,456", "0x10", "--"])
def test_what_is_no_number_is_none(text):
    assert parse_number(text) is None


def test_metrics_of_one_line_are_found_together():
    patterns = MetricPatterns([LOSS, Named("lr", r"lr (\S+)"), Named("absent", "absent ([0-9]+)")])

    found = patterns.find("epoch 3 | loss=0.25 | lr 1e-4 | 1234 img/s")

    assert found is not None
    assert (found.values, found.step) == ({"loss": 0.25, "lr": 1e-4}, None)
    assert patterns.find("nothing here") is None


def test_a_group_named_step_is_the_step_of_the_line():
    patterns = MetricPatterns([LOSS, Named("acc", r"step (?P<step>[\d,]+).*acc=(\S+)")])

    found = patterns.find("step 1,200 loss=0.5 acc=0.9")

    assert found is not None
    assert (found.values, found.step) == ({"loss": 0.5, "acc": 0.9}, 1200)


def test_a_step_that_is_no_number_is_no_step():
    patterns = MetricPatterns([Named("acc", r"step (?P<step>\S+) acc=(\S+)")])

    for word in ("last", "nan", "inf"):
        found = patterns.find(f"step {word} acc=0.9")
        assert found is not None
        assert found.step is None


def test_progress_bars_and_colors_are_read_through():
    patterns = MetricPatterns([LOSS])

    bar = patterns.find("  5%|▌         | 5/100 [00:01<00:20,  4.51it/s, loss=0.53]")
    colored = patterns.find("\x1b[1;32mloss\x1b[0m=\x1b[31m0.25\x1b[0m")

    assert [one and one.values for one in (bar, colored)] == [{"loss": 0.53}, {"loss": 0.25}]


@pytest.mark.parametrize(
    "line",
    [
        "loss=\x1b[K0.5",
        "\x1b[2K\x1b[1Gloss=0.5",
        "loss=\x1b[38:5:2m0.5\x1b[0m",
        "\x1b[?25lloss=\x1b[>4;2m0.5\x1b[?25h",
        "loss=\x1b[0 q0.5",
    ],
)
def test_what_moves_the_cursor_or_colors_the_text_is_read_through(line):
    patterns = MetricPatterns([LOSS])

    assert [found.values for found in patterns.find_all(["epoch 1", line])] == [{"loss": 0.5}]


def test_a_metric_that_was_never_found_is_told_with_its_regex():
    lr = Named("lr", r"lr: (\S+)")

    assert unfound([LOSS, lr], {"loss"}) == [
        r"metric 'lr': asked for a number by its regex 'lr: (\\S+)', found none in any line of the "
        "ranks; compare it with a line of their logs"
    ]
    assert unfound([LOSS, lr], {"loss", "lr"}) == []
    assert unfound([], set()) == []


def test_text_that_is_no_number_is_left_out_and_said_once(caplog):
    patterns = MetricPatterns([Named("loss", r"loss=(\S+)")])

    found = [patterns.find(line) for line in ("loss=high", "loss=low", "loss=0.5")]

    assert [one and one.values for one in found] == [None, None, {"loss": 0.5}]
    [record] = caplog.records
    assert "metric 'loss': asked for a number, found 'high'" in record.message


def test_an_optional_group_that_took_no_part_is_no_metric():
    patterns = MetricPatterns([Named("loss", r"loss(?:=([0-9.]+))?")])

    assert patterns.find("loss is unknown") is None


def test_only_the_beginning_of_a_huge_line_is_looked_at_and_that_is_said_once(caplog):
    patterns = MetricPatterns([LOSS])
    huge = "loss=0.5 " + "x" * 1_000_000

    first, second = patterns.find(huge), patterns.find("x" * 3000 + " loss=0.5")

    assert first is not None
    assert second is None
    [record] = caplog.records
    assert "the first 2,000 of a line of 1,000,009 characters" in record.message


@given(
    regexes=st.lists(
        st.sampled_from(
            [
                r"loss[= ]+([0-9.e+-]+)",
                r"^loss=(\d)",
                r"loss=(\d)$",
                r"(?i)LOSS\s+(\d)",
                r"\s+loss=(\d)",
                r"loss(?!\s*val)=(\d)(?!\s+val)",
                r"(?<!val )loss=(\d)",
                r"loss\s*+=(\d)",
                r"\b(\d)?\bval",
                r"[^\d]+(\d) val",
                r"step (?P<step>\d)(?:\s|x)*loss=(\d)",
                r"(?s)val.*(\d)",
                r"\Aval (\d)\Z",
                r"(?:val){e<=1} (\d)",
            ]
        ),
        min_size=1,
        max_size=3,
    ),
    lines=st.lists(
        st.lists(
            st.sampled_from(
                ["loss=", "loss", " ", "1", "2", "val ", "step 3", "\t", "\r", "\x1b[1m"]
            )
        ).map("".join),
        max_size=8,
    ),
)
def test_lines_that_are_searched_together_say_what_each_says_alone(regexes, lines):
    patterns = MetricPatterns([Named(f"m{i}", regex) for i, regex in enumerate(regexes)])

    found = patterns.find_all(lines)

    assert found == [one for line in lines if (one := patterns.find(line)) is not None]


def test_a_regex_that_would_take_years_is_dropped_and_said_once_for_many_lines(caplog):
    caplog.set_level(logging.WARNING)
    patterns = MetricPatterns([Named("endless", r"(?:\w*\w*\w*\w*)*x=([0-9])|never"), LOSS])

    found = patterns.find_all(["loss=0.5 " + "a" * 1500] * 3)

    assert [one.values for one in found] == [{"loss": 0.5}] * 3
    [record] = caplog.records
    assert "metric 'endless' is not read from here on" in record.message


def test_a_regex_that_would_take_years_is_dropped_and_said_once(caplog):
    caplog.set_level(logging.WARNING)
    endless = Named("endless", r"(?:\w*\w*\w*\w*)*x=([0-9])|never")
    patterns = MetricPatterns([endless, LOSS])
    started = time.monotonic()

    found = [patterns.find("loss=0.5 " + "a" * 1500) for _ in range(3)]

    assert [one and one.values for one in found] == [{"loss": 0.5}] * 3
    assert time.monotonic() - started < 45
    [record] = caplog.records
    assert "metric 'endless' is not read from here on" in record.message


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (
            "loss=([0-9]+",
            "metrics[0].regex: asked for a regular expression, found 'loss=([0-9]+', ",
        ),
        ("loss=[0-9]+", "found no groups in 'loss=[0-9]+'; put ( ) around the number alone"),
        (r"(loss)=([0-9]+)", r"found 2 groups in '(loss)=([0-9]+)'"),
        (r"step (?P<step>\d+)", "found no groups in"),
        (r"([0-9.]*)", "found '([0-9.]*)', which matches an empty text; ask for a character"),
    ],
)
def test_a_wrong_regex_is_one_clear_problem(pattern, said):
    [problem] = metric_problems([Named("loss", pattern)])

    assert said in str(problem)


def test_two_metrics_of_one_name_are_a_problem():
    [problem] = metric_problems([LOSS, Named("loss", r"val ([0-9.]+)")])

    assert problem.field == "metrics[1].name"
    assert "the same name at metrics[0].name" in str(problem)


def test_metrics_of_a_job_are_accepted_as_they_are():
    job = TrainingJob.parse(
        {
            "name": "x",
            "algorithm": {"kind": "script", "code": {"url": "code"}, "boot_file": "train.py"},
            "metrics": [{"name": "loss", "regex": r"(?P<step>\d+): loss[= ]+([0-9.e+-]+)"}],
        }
    )

    found = MetricPatterns(job.metrics).find("7: loss = 0.5")

    assert metric_problems(job.metrics) == []
    assert found is not None
    assert (found.values, found.step) == ({"loss": 0.5}, 7)
