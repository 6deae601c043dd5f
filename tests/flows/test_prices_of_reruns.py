"""What a flavor is when a job runs again: what the platform says of it now."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from prefect.client.orchestration import SyncPrefectClient

from flows.__main__ import main
from tests.submitting import cpu_deployment, job_file

FLAVORS = "lab: {size: 2c4g, price_per_hour: PRICE}\n1c1g: {price_per_hour: PRICE}\n"


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """A client of a server whose pool cpu makes pods, and has no worker."""
    with cpu_deployment("kubernetes") as found:
        yield found


def say_flavors(text: str) -> None:
    folder = Path(os.environ["TRAINJOB_REGISTRY"])
    folder.mkdir(exist_ok=True)
    (folder / "flavors.yaml").write_text(text)


def made(capsys, *words: str) -> dict[str, Any]:
    """Run a command with --json and return what it says."""
    assert main([*words, "--json"]) == 0
    return cast(dict[str, Any], json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("flavor", ["lab", "1c1g"])
def test_a_rerun_costs_what_its_flavor_costs_now(client, tmp_path, capsys, flavor: str) -> None:
    say_flavors(FLAVORS.replace("PRICE", "1"))
    old = made(capsys, "submit", job_file(tmp_path, resources={"flavor": flavor}))
    say_flavors(FLAVORS.replace("PRICE", "10"))

    new = made(capsys, "rerun", old["id"])

    assert (old["cost"].split(" ")[0], new["cost"].split(" ")[0]) == ("1.00", "10.00")
    given = client.read_flow_run(new["id"]).parameters["job"]["resources"]["flavor"]
    assert given["price_per_hour"] == 10


def test_a_rerun_goes_where_its_flavor_is_now(client, tmp_path, capsys) -> None:
    say_flavors("lab: {size: 2c4g}")
    old = made(capsys, "submit", job_file(tmp_path, resources={"flavor": "lab"}))
    say_flavors("lab: {size: 2c4g, pool: moved}")

    assert main(["rerun", old["id"]]) == 1

    assert "'training-job/moved' (the pool of the flavor lab (2c4g))" in capsys.readouterr().err


def test_a_rerun_keeps_a_flavor_that_the_platform_no_longer_has(client, tmp_path, capsys) -> None:
    say_flavors(FLAVORS.replace("PRICE", "1"))
    old = made(capsys, "submit", job_file(tmp_path, resources={"flavor": "lab"}))
    say_flavors("{}")

    new = made(capsys, "rerun", old["id"])

    assert new["cost"] == old["cost"]


def test_a_price_that_a_rerun_is_given_counts(client, tmp_path, capsys) -> None:
    say_flavors(FLAVORS.replace("PRICE", "1"))
    old = made(capsys, "submit", job_file(tmp_path, resources={"flavor": "lab"}))

    new = made(capsys, "rerun", old["id"], "--set", "resources.flavor.price_per_hour=7")

    assert new["cost"].startswith("7.00")


def test_a_size_that_a_person_chose_outlives_another_price(client, tmp_path, capsys) -> None:
    say_flavors(FLAVORS.replace("PRICE", "1"))
    file = job_file(tmp_path, resources={"flavor": "lab"})
    old = made(capsys, "submit", file, "--job-variable", "memory=64Gi")
    say_flavors(FLAVORS.replace("PRICE", "10"))

    new = made(capsys, "rerun", old["id"])

    assert not [warning for warning in new["warnings"] if "job variables" in warning]
    assert client.read_flow_run(new["id"]).job_variables["memory"] == "64Gi"


def test_a_schedule_names_its_flavor_so_that_each_run_costs_what_it_costs_then(
    client, tmp_path, capsys
) -> None:
    say_flavors(FLAVORS.replace("PRICE", "1"))
    file = job_file(tmp_path, resources={"flavor": "lab"})

    said = made(capsys, "schedule", file, "--cron", "0 3 * * *")

    nightly = client.read_deployment_by_name("training-job/relative")
    client.delete_deployment(nightly.id)
    assert said["cost"].startswith("1.00")
    assert nightly.parameters["job"]["resources"]["flavor"] == "lab"
    assert nightly.job_variables["memory"] == "4Gi"
