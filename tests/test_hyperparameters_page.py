"""docs/hyperparameters.md: the job of the page gets what the page shows."""

import re
from pathlib import Path

import pytest
import yaml

from flows.preview import preview, preview_text
from trainjob.errors import JobError
from trainjob.job import TrainingJob

PAGE = (Path(__file__).parent.parent / "docs" / "hyperparameters.md").read_text()


def block(mark: str) -> str:
    [text] = re.findall(rf"^```\w+ {mark}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def test_the_check_says_what_the_page_shows(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(block("file=job.yaml"))

    lines = preview_text(preview(TrainingJob.load(file))).splitlines()

    assert [line for line in block("shown").splitlines() if line not in lines] == []


def test_the_rules_refuse_what_the_page_says_they_do(tmp_path: Path) -> None:
    values, *problems = block("refused").splitlines()
    job = yaml.safe_load(block("file=job.yaml")) | yaml.safe_load(values.removeprefix("$ "))

    with pytest.raises(JobError) as caught:
        TrainingJob.parse(job)

    assert [str(problem) for problem in caught.value.problems] == problems
