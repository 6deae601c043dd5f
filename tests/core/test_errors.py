"""The error tree: messages for people, and one place that decides about retries."""

import pickle

import pytest

from trainjob import errors
from trainjob.errors import JobError, Problem, TrainjobError

PROBLEM = Problem("inputs[0].url", "the folder '/x'", "nothing there", "check the path")


def test_a_job_error_lists_all_problems() -> None:
    error = JobError("job.yaml", [PROBLEM, PROBLEM])

    assert str(error) == (
        "job.yaml: 2 problems\n"
        "  inputs[0].url: asked for the folder '/x', found nothing there; check the path\n"
        "  inputs[0].url: asked for the folder '/x', found nothing there; check the path"
    )


def test_a_job_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(JobError("job.yaml", [PROBLEM])))

    assert error.problems == (PROBLEM,)
    assert str(error).startswith("job.yaml: 1 problem\n")


def test_the_tree_drawn_in_the_module_is_the_tree_in_the_code() -> None:
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, TrainjobError)
    ]
    lines = {line.strip("│├└─ ").partition(" ")[0]: line for line in errors.__doc__.splitlines()}

    for error in classes:
        assert lines[error.__name__].endswith("retryable") == error.retryable


@pytest.mark.parametrize("error", [errors.StoreDenied, errors.TrainingFailed, JobError])
def test_what_a_person_must_mend_is_not_retried(error: type[TrainjobError]) -> None:
    assert not error.retryable
