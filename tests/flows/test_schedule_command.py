"""``python -m flows schedule``: what the server is given, what is said, and what is refused."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.__main__ import main
from flows.schedules import MADE_FROM_ALGORITHM, MADE_HERE
from tests.submitting import cpu_deployment, job_file


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """A client of a server that has the pool and the deployment cpu, and no worker."""
    with cpu_deployment() as found:
        yield found


def test_schedule_makes_a_deployment_that_is_listed_replaced_and_deleted(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    file = job_file(tmp_path)
    assert main(["schedule", file, "--cron", "0 3 * * *"]) == 0
    assert main(["schedule", file, "--cron", "0 4 * * 1", "--timezone", "Europe/Berlin"]) == 0
    capsys.readouterr()

    assert main(["schedule", "list", "--json"]) == 0
    [listed] = json.loads(capsys.readouterr().out)["schedules"]
    made = client.read_deployment_by_name("training-job/relative")
    assert main(["schedule", "delete", "relative"]) == 0
    capsys.readouterr()
    assert main(["schedule", "list"]) == 0

    assert (listed["name"], listed["when"]) == ("relative", "0 4 * * 1 (Europe/Berlin)")
    assert listed["is_active"]
    assert made.parameters["job"]["algorithm"]["code"]["url"] == str(tmp_path / "code")
    assert (made.entrypoint, made.work_pool_name) == ("flows.training_job.training_job", "cpu")
    assert capsys.readouterr().out == "no schedules\n"


def test_a_schedule_is_said_as_it_was_understood(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    file = job_file(tmp_path)
    kinds = [
        (["--every", "6h", "--anchor", "2026-01-31T03:00"], "every 6h from 2026-01-31 03:00 (UTC)"),
        (["--rrule", "FREQ=WEEKLY;BYDAY=MO;BYHOUR=3"], "FREQ=WEEKLY;BYDAY=MO;BYHOUR=3 (UTC)"),
        (["--cron", "0 4 * * 1"], "0 4 * * 1 (UTC)"),
    ]

    said = []
    for words, _ in kinds:
        assert main(["schedule", file, *words]) == 0
        said.append(capsys.readouterr().out.splitlines()[-1])
        assert main(["schedule", "list", "--json"]) == 0
        said.append(json.loads(capsys.readouterr().out)["schedules"][0]["when"])
    assert main(["schedule", file, "--every", "2d", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert main(["schedule", "delete", "relative"]) == 0

    for made, (_, when) in zip(said[::2], kinds, strict=True):
        assert when in made
    assert said[1::2] == [when for _, when in kinds]
    assert (facts["name"], facts["interval"], facts["timezone"]) == ("relative", 172800, "UTC")
    first = datetime.fromisoformat(facts["next_start"])
    assert timedelta(days=1.9) < first - datetime.now(UTC) <= timedelta(days=2)
    assert re.search(r", by the pool cpu; first at \d{4}-\d\d-\d\d 04:00 \(UTC\)$", said[4])


def test_only_one_thing_says_when(client: SyncPrefectClient, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["schedule", job_file(tmp_path), "--cron", "0 3 * * *", "--every", "6h"])

    assert "argument --every: not allowed with argument --cron" in capsys.readouterr().err


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """The name of a dataset that has one version."""
    data = tmp_path / "versions"
    data.mkdir()
    (data / "value.txt").write_text("1")
    assert main(["dataset", "register", "numbers", str(data)]) == 0
    return "numbers"


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        ({"url": "data"}, "inputs: asked for an input that is the dataset 'numbers', found none"),
        ({"dataset": "numbers@1"}, "found 'numbers@1'; write dataset: numbers, without a version"),
    ],
    ids=["another", "pinned"],
)
def test_a_job_that_cannot_take_a_new_version_does_not_wait_for_one(
    client: SyncPrefectClient,
    tmp_path: Path,
    dataset: str,
    capsys,
    channel: dict[str, Any],
    expected: str,
) -> None:
    file = job_file(tmp_path, inputs=[{"name": "data_url", **channel}])

    assert main(["schedule", file, "--on-dataset", dataset]) == 2

    assert expected in capsys.readouterr().err


def test_what_waits_for_a_dataset_is_replaced_by_a_schedule_and_the_other_way_round(
    client: SyncPrefectClient, tmp_path: Path, dataset: str, capsys
) -> None:
    file = job_file(tmp_path, inputs=[{"name": "data_url", "dataset": dataset}])

    def listed(*words: str) -> str:
        assert main(["schedule", file, *words]) == 0
        capsys.readouterr()
        assert main(["schedule", "list", "--json"]) == 0
        [schedule] = json.loads(capsys.readouterr().out)["schedules"]
        return str(schedule["when"])

    by_dataset = listed("--on-dataset", dataset)
    again = listed("--on-dataset", dataset)
    num_waiting = len(client.read_automations())
    by_time = listed("--cron", "0 3 * * *")
    num_after = len(client.read_automations())
    assert main(["schedule", "delete", "relative"]) == 0

    assert by_dataset == again == "every new version of the dataset numbers"
    assert by_time == "0 3 * * * (UTC)"
    assert (num_waiting, num_after) == (1, 0)


def test_a_version_is_saved_though_no_server_could_be_told(
    client: SyncPrefectClient, tmp_path: Path, dataset: str, capsys
) -> None:
    capsys.readouterr()
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert main(["dataset", "register", dataset, str(tmp_path / "versions")]) == 0

    saved, warning = capsys.readouterr().out.splitlines()
    assert saved.startswith("saved the dataset numbers@2: ")
    assert warning.startswith(
        "warning: no job that waits for a new version is started: the Prefect"
    )


def test_a_schedule_that_is_replaced_keeps_its_deployment(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    """A run of it that goes on is started again from there, if its process is killed."""
    file = job_file(tmp_path)
    assert main(["schedule", file, "--cron", "0 3 * * *"]) == 0
    before = client.read_deployment_by_name("training-job/relative")
    client.pause_deployment(before.id)
    run = client.create_flow_run_from_deployment(before.id)
    capsys.readouterr()

    assert main(["schedule", file, "--cron", "0 4 * * *"]) == 0

    ended = "warning: the schedule 'relative' was paused, and is not any more\n"
    assert ended in capsys.readouterr().out
    after = client.read_deployment_by_name("training-job/relative")
    assert after.id == before.id == client.read_flow_run(run.id).deployment_id
    assert [item.schedule.model_dump()["cron"] for item in after.schedules] == ["0 4 * * *"]
    assert not after.paused
    assert main(["schedule", file, "--cron", "0 5 * * *"]) == 0
    assert "was paused" not in capsys.readouterr().out
    assert main(["schedule", "delete", "relative"]) == 0
    assert "runs that have begun stay" in capsys.readouterr().out


def test_a_deployment_that_is_paused_keeps_no_run_and_no_new_schedule_from_starting(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    """Prefect 3.8 plans no runs of its own schedules, and takes every other one."""
    file = job_file(tmp_path)
    base = client.read_deployment_by_name("training-job/cpu")
    client.pause_deployment(base.id)

    assert main(["submit", file]) == 0
    assert main(["schedule", file, "--cron", "0 3 * * *"]) == 0

    made = client.read_deployment_by_name("training-job/relative")
    client.delete_deployment(made.id)
    assert "is paused" not in capsys.readouterr().out
    assert not made.paused


def test_a_schedule_of_the_ui_that_no_calendar_has_is_listed_and_deleted(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    assert main(["schedule", job_file(tmp_path), "--every", "1d"]) == 0
    made = client.read_deployment_by_name("training-job/relative")
    zone = "America/New_York"
    begin = datetime(9999, 12, 31, 23, tzinfo=ZoneInfo(zone))
    late = IntervalSchedule(interval=timedelta(days=1), anchor_date=begin, timezone=zone)
    client.create_deployment_schedules(made.id, [DeploymentScheduleCreate(schedule=late)])
    capsys.readouterr()

    assert main(["schedule", "list"]) == 0
    listed = capsys.readouterr().out
    assert main(["schedule", "delete", "relative"]) == 0

    assert "every 1d from a time beyond the years 1 to 9999 (America/New_York)" in listed


def test_what_a_schedule_is_made_from_does_not_make_it_another_thing(
    client: SyncPrefectClient, tmp_path: Path
) -> None:
    base = client.read_deployment_by_name("training-job/cpu")
    client.update_deployment(base.id, DeploymentUpdate(tags=["lab", MADE_FROM_ALGORITHM]))

    assert main(["schedule", job_file(tmp_path), "--cron", "0 3 * * *"]) == 0

    made = client.read_deployment_by_name("training-job/relative")
    client.delete_deployment(made.id)
    assert made.tags == ["lab", MADE_HERE]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["more", "--cron", "0 3 * * *"], "found 'more' after it"),
        (["--cron", "0 3 * * *", "--name", "50%"], "found a name that no deployment can have"),
        (["--cron", "61 * * * *"], "asked for the schedule '61 * * * *'"),
        (["--cron", "0 3 * * *", "--timezone", "Mars/North"], "'Mars/North'"),
        (["--cron", "0 3 * * *", "--name", "cpu"], "this command has not made"),
        ([], "found nothing that says when; write --cron, --every, --rrule or --on-dataset"),
        (["--every", "tomorrow"], "asked for the schedule 'tomorrow', found no length of time"),
        (["--cron", "0 3 * * *", "--anchor", "2026-01-31"], "found no --every"),
        (["--rrule", "FREQ=FOO"], "asked for the schedule 'FREQ=FOO'"),
        (["--every", "3000000d"], "asked for the schedule '3000000d', found no time"),
        (
            ["--on-dataset", "numbers", "--timezone", "Mars/North"],
            "asked for --timezone 'Mars/North', found --on-dataset",
        ),
    ],
)
def test_a_wrong_schedule_is_one_message(
    client: SyncPrefectClient, tmp_path: Path, capsys, words: list[str], expected: str
) -> None:
    assert main(["schedule", job_file(tmp_path), *words]) == 1

    assert expected in capsys.readouterr().err


def test_runs_of_a_schedule_need_places_of_their_own(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    file = job_file(tmp_path, outputs=[{"name": "train_url", "url": "out"}], logs={"url": "logs"})

    assert main(["schedule", file, "--cron", "0 3 * * *"]) == 2

    message = capsys.readouterr().err
    assert "outputs[0].url: asked for a place for every run" in message
    assert "logs.url: asked for a place for every run" in message


def test_a_deployment_that_was_not_made_here_is_not_deleted(
    client: SyncPrefectClient, capsys
) -> None:
    assert main(["schedule", "delete", "cpu"]) == 1

    assert "this command has not made" in capsys.readouterr().err
    assert client.read_deployment_by_name("training-job/cpu")
