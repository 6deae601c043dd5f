"""Jobs that are submitted, refused and cancelled in the browser, on a real server and worker."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from playwright.sync_api import Browser
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from prefect.client.schemas.objects import FlowRun

from blocks.object_store import ObjectStore
from tests.browser import Person, Version, chromium, chromium_path
from tests.digits import making_digits
from tests.e2e.machine import in_front_of
from tests.jobs import COPY_SCRIPT, make_job
from tests.serving import Serve
from tests.waiting import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[2]
WAITING_SCRIPT = """\
import argparse, pathlib, time
parser = argparse.ArgumentParser()
for name in ("data_url", "train_url", "checkpoint_dir"):
    parser.add_argument(f"--{{name}}", type=pathlib.Path)
parser.add_argument("--value", type=int)
args = parser.parse_args()
(args.train_url / "half.txt").write_text(str(args.value))
pathlib.Path({begun!r}).touch()
while True:
    time.sleep(0.1)
"""
ALGORITHM = """\
algorithm:
  code: {{url: {code}}}
  boot_file: train.py
  hyperparameters:
    - {{name: epochs, type: integer, minimum: 1, maximum: 100, default: 10,
       description: "Passes over the data"}}
    - {{name: optimizer, type: string, choices: [adam, sgd], default: adam,
       description: "What makes the steps"}}
"""
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    chromium_path()  # without it, no server is started for nothing
    folder = tmp_path_factory.mktemp("serve")
    (folder / "registry").mkdir()
    (folder / "registry" / "flavors.yaml").write_text("1c1g: {price_per_hour: 0.4}\n")
    serve = Serve(folder, {"TRAINJOB_REGISTRY": str(folder / "registry")})
    try:
        serve.wait_until_ready()
        yield serve
    finally:
        serve.process.send_signal(signal.SIGTERM)
        serve.process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def server(serve: Serve, s3: Any) -> str:
    """Give the url of a server that has a worker, and a store by the name of ``lab``."""
    url = f"http://127.0.0.1:{serve.port}"
    # Before the browser starts: its event loop would make Prefect return coroutines.
    with in_front_of(f"{url}/api"):
        settings = s3.settings
        ObjectStore(
            endpoint_url=settings.endpoint_url,
            access_key=settings.access_key,
            secret_key=settings.secret_key,
            addressing_style="path",
        ).save("lab")
    return url


@pytest.fixture(scope="module")
def browser(server: str) -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def client(server: str) -> Iterator[SyncPrefectClient]:
    api = in_front_of(f"{server}/api")
    with api, get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def person(
    browser: Browser, server: str, request: pytest.FixtureRequest
) -> Iterator[Callable[[Version], Person]]:
    """Give people, who leave at the end of the test: an open page goes on to draw.

    What they see when the test has failed is kept.
    """
    num_failed_before = request.session.testsfailed
    with ExitStack() as leaving:

        def leave(who: Person) -> None:
            if request.session.testsfailed > num_failed_before:
                who.screenshot(f"failed-{request.node.name}")
            who.page.close()

        def come(version: Version) -> Person:
            found = Person(browser, server, version)
            leaving.callback(leave, found)
            return found

        yield come


def ended(client: SyncPrefectClient, run_id: str) -> FlowRun:
    """Wait for the end of a run."""

    def is_over() -> bool:
        state = client.read_flow_run(UUID(run_id)).state
        return state is not None and state.is_final()

    wait_until(is_over)
    return client.read_flow_run(UUID(run_id))


def places_of_run(client: SyncPrefectClient, run_id: str) -> UUID:
    """Wait for the page with the places that a run wrote to; return its id."""
    of_run = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(run_id)]),
        key=ArtifactFilterKey(any_=["outputs-by-hand"]),
    )
    wait_until(lambda: client.read_artifacts(artifact_filter=of_run))
    return client.read_artifacts(artifact_filter=of_run)[0].id


def browser_section() -> tuple[list[str], list[str]]:
    """Return what the README shows of `make serve`, and what is to be pressed in the browser."""
    section = (ROOT / "README.md").read_text().partition("## A job in the browser\n")[2]
    [(typed, shown)] = re.findall(r"^```console serve\n\$ (.*)\n((?:.*\n)*?)```$", section, re.M)
    assert typed == "make serve"
    pressed = re.findall(r"\*([\w ]+)\*", section.partition("*Submit*")[0])
    return [line for line in shown.splitlines() if line != "…"], pressed


def test_a_newcomer_trains_the_digits_by_what_the_readme_says(
    person: Callable[[Version], Person], serve: Serve, server: str, client: SyncPrefectClient
) -> None:
    shown, pressed = browser_section()
    prepare = ["make", "-o", ".venv/.installed", ".demo/datasets/digits"]
    with making_digits():
        subprocess.run(prepare, cwd=ROOT, check=True, capture_output=True)
    newcomer = person("v2")

    newcomer.page.goto(server)
    for name in pressed:
        newcomer.press(name)
    newcomer.title("Limits").wait_for()
    newcomer.screenshot("form")
    run_id = newcomer.submit()
    newcomer.page.goto("about:blank")
    state = ended(client, run_id).state
    newcomer.open_run(run_id)
    newcomer.sees("Completed")
    newcomer.screenshot("run")

    assert pressed == ["Deployments", "cpu", "Run", "Custom run"]
    log = iter(serve.log.read_text().replace(f":{serve.port}", ":4200").splitlines())
    assert [line for line in shown if line not in log] == []
    assert state is not None
    assert state.is_completed(), state.message


@pytest.fixture
def no_run_begins(client: SyncPrefectClient) -> Iterator[None]:
    client.update_work_pool("cpu", WorkPoolUpdate(is_paused=True))
    yield
    client.update_work_pool("cpu", WorkPoolUpdate(is_paused=False))


@pytest.mark.usefixtures("no_run_begins")
def test_the_old_ui_submits_the_form_as_it_is_and_cancels_the_run_that_waits(
    person: Callable[[Version], Person], client: SyncPrefectClient
) -> None:
    deployment = client.read_deployment_by_name("training-job/cpu")
    at_v1 = person("v1")
    at_v1.open_form(deployment.id)
    at_v1.screenshot("form")

    run_id = at_v1.submit()
    at_v1.open_run(run_id)
    at_v1.cancel()
    run = ended(client, run_id)

    assert run.parameters == deployment.parameters
    assert run.state is not None
    assert run.state.is_cancelled(), run.state.message


@pytest.mark.usefixtures("no_run_begins")
def test_the_old_ui_submits_an_input_and_an_output_more(
    person: Callable[[Version], Person], client: SyncPrefectClient
) -> None:
    deployment = client.read_deployment_by_name("training-job/cpu")
    form = person("v1")
    form.open_form(deployment.id)
    form.settle()

    # The new ones are the second of the inputs, and after all of these the second output.
    for title, name, url in (("Data · Inputs", 1, 2), ("Data · Outputs", 3, 4)):
        form.add_item(title, "Name", "URL")
        form.settle()
        form.field("Name", name).fill("more")
        form.field("URL", url).fill("somewhere/")
    form.settle()
    run = client.read_flow_run(UUID(form.submit()))

    job, asked = run.parameters["job"], deployment.parameters["job"]
    for channels in ("inputs", "outputs"):
        [given, more] = job[channels]
        assert given["name"] == asked[channels][0]["name"]
        assert (more["name"], more["url"]) == ("more", "somewhere/")
    client.delete_flow_run(run.id)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_wrong_value_is_refused_at_its_field_and_no_run_is_made(
    person: Callable[[Version], Person], client: SyncPrefectClient, version: Version
) -> None:
    form = person(version)
    form.open_form(client.read_deployment_by_name("training-job/cpu").id)
    before = {run.id for run in client.read_flow_runs()}

    form.field("Auto stop").fill("10 parsecs")
    form.press_submit()

    form.sees("'10 parsecs' is not valid")
    form.screenshot("wrong-value")
    assert {run.id for run in client.read_flow_runs()} == before


@pytest.mark.usefixtures("no_run_begins")
def test_the_form_of_an_algorithm_has_its_hyperparameters_and_refuses_others(
    tmp_path: Path, person: Callable[[Version], Person], server: str, client: SyncPrefectClient
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").touch()
    (tmp_path / "algorithm.yaml").write_text(ALGORITHM.format(code=tmp_path / "code"))
    env = os.environ | {"PREFECT_API_URL": f"{server}/api"}
    for words in (["register", "mine", str(tmp_path / "algorithm.yaml")], ["deploy", "mine"]):
        command = [sys.executable, "-m", "flows", "algorithm", *words]
        subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
    form = person("v2")
    form.open_form(client.read_deployment_by_name("training-job/mine").id)
    form.sees("Passes over the data")
    before = {run.id for run in client.read_flow_runs()}

    form.field("epochs").fill("1000")
    form.press_submit()
    refusal = form.field("epochs").evaluate("field => field.validationMessage")
    form.screenshot("hyperparameter-refused")
    is_refused = {run.id for run in client.read_flow_runs()} == before
    form.field("epochs").fill("20")
    form.choose("optimizer", "sgd")
    run = client.read_flow_run(UUID(form.submit()))

    assert refusal == "Value must be less than or equal to 100."
    assert is_refused
    assert run.parameters["job"]["algorithm"] == "mine@1"
    assert run.parameters["job"]["hyperparameters"] == {"epochs": 20, "optimizer": "sgd"}


def test_a_job_from_s3_to_s3_whose_lists_were_changed_by_hand_completes(
    tmp_path: Path, person: Callable[[Version], Person], client: SyncPrefectClient, s3: Any
) -> None:
    bucket, script = s3.new_bucket(), COPY_SCRIPT.replace("parse_args()", "parse_known_args()[0]")
    s3.put(bucket, "data/value.txt", b"21")
    make_job(tmp_path, script)
    urls = (str(tmp_path / "code"), *(f"s3://{bucket}/{name}/" for name in ("data", "data", "out")))
    form = person("v2")
    form.open_form(client.read_deployment_by_name("training-job/cpu").id)

    form.add_item("Data · Outputs", "Name", "URL")
    form.delete_item("Data · Outputs", 1)
    form.add_item("Data · Inputs", "Name", "URL")
    form.field("Name", 1).fill("more_url")
    form.delete_item("Basic information · Tags")
    form.add_item("Basic information · Tags")
    form.field("Basic information · Tags").fill("by-list")
    for place, url in enumerate(urls):
        form.field("URL", place).fill(url)
    form.choose_tab("Data · Checkpoints", "Absent")
    form.choose_tab("Data · Store", "Text")
    form.field("Data · Store").fill("lab")
    form.screenshot("lists")
    run = ended(client, form.submit())

    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    job = run.parameters["job"]
    assert [channel["name"] for channel in job["inputs"]] == ["data_url", "more_url"]
    assert (len(job["outputs"]), job["tags"]) == (1, ["by-list"])
    assert s3.get(bucket, "out/result.json") == b"21"


def test_a_job_that_is_filled_in_by_hand_and_cancelled_keeps_what_it_wrote(
    tmp_path: Path, person: Callable[[Version], Person], client: SyncPrefectClient, s3: Any
) -> None:
    """Every kind of control is used: texts, numbers, a dropdown, tabs, lists, and an editor."""
    bucket, begun = s3.new_bucket(), tmp_path / "begun"
    s3.put(bucket, "data/value.txt", b"21")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "wait.py").write_text(WAITING_SCRIPT.format(begun=str(begun)))
    form = person("v2")
    form.open_form(client.read_deployment_by_name("training-job/cpu").id)

    form.field("Basic information · Name").fill("by-hand")
    form.field("Boot file").fill("wait.py")
    urls = (
        str(tmp_path / "code"),
        f"s3://{bucket}/data/",
        f"s3://{bucket}/out/",
        f"s3://{bucket}/checkpoints/",
    )
    for place, url in enumerate(urls):
        form.field("URL", place).fill(url)
    form.choose_tab("Data · Store", "Text")
    form.field("Data · Store").fill("lab")
    form.write_json("Hyperparameters", '{"value": 42}')
    form.choose_tab("Flavor", "Choice")
    form.choose("Flavor", "1c1g")
    form.field("Processes per node").fill("1")
    form.choose("Resources · Launcher", "single")
    form.field("Grace").fill("2s")
    run_id = form.submit()
    form.page.goto("about:blank")
    wait_until(begun.exists)
    form.open_run(run_id)
    form.sees("Running")
    form.cancel()
    run = ended(client, run_id)
    form.sees("Cancelled")
    form.screenshot("cancelled")

    assert run.state is not None
    assert run.state.is_cancelled(), run.state.message
    form.open_artifact(places_of_run(client, run_id))
    form.sees(f"s3://{bucket}/out/_trainjob/receipt.json")
    form.screenshot("outputs")
    assert json.loads(s3.get(bucket, "out/_trainjob/receipt.json"))["state"] == "Cancelled"
    assert s3.get(bucket, "out/half.txt") == b"42"
    assert client.read_flow_run(UUID(run_id)).parameters["job"]["resources"]["flavor"] == "1c1g"
    assert "out/_SUCCESS" not in s3.keys(bucket)
