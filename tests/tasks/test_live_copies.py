"""The copies of a stage as an artifact of a real Prefect server, with events told by hand."""

import logging
from collections.abc import Callable
from contextlib import nullcontext

import pytest
from prefect import flow, task
from prefect.client.schemas.objects import Artifact
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.live_copies import live_copies
from tests.artifacts import artifacts_of
from tests.waiting import wait_until
from trainjob.events import Transferred, emit

pytestmark = pytest.mark.usefixtures("prefect_server")


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [record.getMessage() for record in caplog.records]
    return [line for line in said if "its artifact is not up to date" in line]


def run_stage(
    copy: Callable[[str], None], update_s: float, api_url: str | None = None
) -> dict[str, Artifact]:
    """Run `copy` as a stage, with the id of its run, and return the artifacts of the run."""

    @task(name="stage_inputs")
    def stage() -> None:
        run_id = str(flow_run.id)
        away = temporary_settings({PREFECT_API_URL: api_url}) if api_url else nullcontext()
        with away, live_copies("Digits DDP", run_id, "staging", update_s=update_s):
            copy(run_id)

    @flow
    def one_flow() -> str:
        stage(return_state=True)
        return str(flow_run.id)

    return artifacts_of(one_flow())


def test_a_long_copy_is_shown_while_it_goes_on_and_at_its_end() -> None:
    shown: list[object] = []

    def copy(run_id: str) -> None:
        emit(Transferred("labels", 3, 3, 30, 30))
        emit(Transferred("data_url", 1, 4, 1 << 20, 4 << 20))
        wait_until(lambda: artifacts_of(run_id))
        shown.append(artifacts_of(run_id)["staging-digits-ddp"].data)
        emit(Transferred("data_url", 4, 4, 4 << 20, 4 << 20))

    found = run_stage(copy, update_s=0.05)

    (artifact,) = found.values()
    assert (artifact.key, artifact.type) == ("staging-digits-ddp", "progress")
    assert shown == [25.0]
    assert artifact.data == 100.0
    lines = str(artifact.description).split("\n\n")
    assert lines[0].startswith("**data_url** 4/4 files, 4 MiB of 4 MiB")
    assert lines[1].startswith("**labels** 3/3 files, 30 B of 30 B")


def test_a_copy_that_is_over_soon_costs_the_server_nothing() -> None:
    found = run_stage(lambda _: emit(Transferred("data_url", 4, 4, 9, 9)), update_s=60)

    assert found == {}


def test_a_copy_whose_size_is_not_known_is_shown_by_what_is_done() -> None:
    def copy(run_id: str) -> None:
        emit(Transferred("unpack data_url", 7, None, 2048, None))
        wait_until(lambda: artifacts_of(run_id))

    found = run_stage(copy, update_s=0.05)

    artifact = found["staging-digits-ddp"]
    assert artifact.data == 0.0
    assert str(artifact.description).startswith("**unpack data_url** 7 files, 2 KiB")


def test_a_server_that_is_away_costs_a_copy_one_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines: list[str] = []

    def copy(_: str) -> None:
        emit(Transferred("data_url", 1, 4, 1, 4))
        wait_until(lambda: warnings_in(caplog))
        emit(Transferred("data_url", 2, 4, 2, 4))
        lines.extend(warnings_in(caplog))

    with caplog.at_level(logging.WARNING, "prefect"):
        found = run_stage(copy, update_s=0.05, api_url="http://127.0.0.1:9/api")

    assert found == {}
    assert lines == warnings_in(caplog)
    assert len(lines) == 1
