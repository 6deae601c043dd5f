"""Saved secrets for the ranks of a job, against a real Prefect server."""

import asyncio
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from blocks.saved_secrets import load_secrets, remembering_secrets, secret_problems
from trainjob.errors import JobError

pytestmark = pytest.mark.usefixtures("prefect_server")

VALUE = "k3y with = and / and 雪\nand a second line"


@pytest.fixture
def saved() -> str:
    Secret(value=VALUE).save("my-key", overwrite=True)
    return "my-key"


def test_a_saved_secret_is_the_value_of_its_variable(saved: str) -> None:
    assert load_secrets({"API_KEY": saved, "AGAIN": saved}) == {"API_KEY": VALUE, "AGAIN": VALUE}


def test_a_secret_is_loaded_while_a_loop_runs_in_the_same_thread(saved: str) -> None:
    async def inside() -> dict[str, str]:
        return load_secrets({"API_KEY": saved})

    assert asyncio.run(inside())["API_KEY"] == VALUE


def test_every_unknown_secret_is_named_with_those_that_are_saved(saved: str) -> None:
    with pytest.raises(JobError) as caught:
        load_secrets({"API_KEY": "my-kei", "TOKEN": "no-token", "KNOWN": saved})

    first, second = caught.value.problems
    assert (first.field, second.field) == ("secrets.API_KEY", "secrets.TOKEN")
    assert "'my-key'" in first.found
    assert ".save('my-kei')" in first.do
    assert VALUE not in str(caught.value)


@pytest.mark.parametrize("value", ["1234", "hunter2\n"], ids=["switch", "pasted"])
def test_what_is_so_short_that_hiding_it_would_change_numbers_is_refused(value: str) -> None:
    Secret(value=value).save("odd", overwrite=True)

    with pytest.raises(JobError, match="found fewer than 8 characters") as caught:
        load_secrets({"API_KEY": "odd"})

    assert value.strip() not in str(caught.value)


@pytest.mark.parametrize(
    "value", [{"user": "me"}, "", "a-text-with-\0"], ids=["json", "empty", "nul"]
)
def test_what_is_no_text_for_a_variable_is_refused(value: Any) -> None:
    Secret(value=value).save("odd", overwrite=True)

    with pytest.raises(JobError, match="found something else than a text"):
        load_secrets({"API_KEY": "odd"})


def test_a_job_without_secrets_asks_nobody() -> None:
    assert load_secrets({}) == {}


def test_what_a_run_was_given_is_remembered_when_the_saved_value_is_another(saved: str) -> None:
    given: set[str] = set()

    with remembering_secrets(given):
        load_secrets({"API_KEY": saved})
        Secret(value="another value").save(saved, overwrite=True)
        load_secrets({"API_KEY": saved})
    load_secrets({"API_KEY": saved})

    assert given == {VALUE, "another value"}


def test_what_is_wrong_with_secrets_is_told_beside_other_problems(saved: str) -> None:
    wanted = {"API_KEY": "my-kei", "KNOWN": saved}

    assert [problem.field for problem in secret_problems(wanted)] == ["secrets.API_KEY"]
    assert secret_problems({"KNOWN": saved}) == []


def test_a_server_that_is_away_is_a_problem_that_may_pass() -> None:
    with temporary_settings(
        {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    ):
        [problem] = secret_problems({"API_KEY": "my-key"})

    assert problem.may_pass
