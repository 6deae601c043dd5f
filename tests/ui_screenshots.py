"""Make the pictures of docs/ui.md from the real UI: ``make screenshots``.

A server and a worker are started with their data in a folder of their own, the digits are trained
by the form, a run is made to fail, and every page that the docs show is opened and kept. The paths
in the pictures are those of the checkout and of the folder.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from uuid import UUID

from PIL import Image
from playwright.sync_api import Browser
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.browser import Person, Version, chromium
from tests.serving import Serve
from tests.waiting import PATIENCE_S, wait_until
from trainjob.job import TrainingJob

ROOT = Path(__file__).parent.parent
_ALGORITHM = """\
description: Learns handwritten digits
algorithm:
  code: {{url: {code}}}
  boot_file: train.py
  hyperparameters:
    - {{name: epochs, type: integer, minimum: 1, maximum: 100, default: 10,
       description: "Passes over the data"}}
    - {{name: lr, type: float, minimum: 0, maximum: 1, default: 0.004,
       description: "Learning rate"}}
    - {{name: batch_size, type: integer, choices: [8, 16, 32], default: 16,
       description: "Images a step and rank"}}
    - {{name: seed, type: integer, default: 0, description: "Of the weights and the order"}}
inputs: [{{name: data_url}}]
outputs: [{{name: train_url}}]
"""


def main(images: Path, data: Path) -> None:
    """Make all pictures in `images`; the server keeps its data in `data`."""
    dataset = ROOT / ".demo" / "datasets" / "digits"
    _run(str(ROOT / "examples" / "make_dataset.py"), str(dataset))
    registry = data / "registry"
    registry.mkdir()
    shutil.copy(ROOT / "examples" / "flavors.yaml", registry)
    serve = Serve(data, {"TRAINJOB_REGISTRY": str(registry)})
    url = f"http://127.0.0.1:{serve.port}"
    try:
        serve.wait_until_ready()
        _make_form_of_algorithm(f"{url}/api", data)
        with (
            chromium() as browser,
            temporary_settings({PREFECT_API_URL: f"{url}/api"}),
            get_client(sync_client=True) as client,
        ):
            _Pictures(browser, url, client, images).make()
    finally:
        serve.process.send_signal(signal.SIGTERM)
        serve.process.wait(PATIENCE_S)
    for picture in images.glob("*.png"):
        _make_small(picture)


class _Pictures:
    """Opens the pages and keeps what is to be seen."""

    def __init__(self, browser: Browser, url: str, client: SyncPrefectClient, images: Path) -> None:
        self._browser = browser
        self._url = url
        self._client = client
        self._images = images

    def make(self) -> None:
        """Make every picture."""
        self._form()
        self._run_that_goes_on()
        self._failure()
        self._others()

    def _person(self, version: Version = "v2", height: int = 900) -> Person:
        return Person(self._browser, self._url, version, (1200, height))

    def _deployment(self, name: str) -> UUID:
        return self._client.read_deployment_by_name(f"training-job/{name}").id

    def _form(self) -> None:
        for version in ("v2", "v1"):
            person = self._person(version)
            person.open_form(self._deployment("cpu"))
            person.settle()
            person.screenshot("form", self._images)
        person = self._person()
        person.open_form(self._deployment("cpu"))
        person.choose_tab("Flavor", "Choice")
        person.choose("Flavor", "2c4g")
        for title, name in (
            ("Algorithm", "form-algorithm"),
            ("Resources · Machine", "form-limits"),
        ):
            person.scroll_to(title)
            person.settle()
            person.screenshot(name, self._images)
        person.field("Auto stop").fill("ten minutes")
        person.press_submit()
        person.sees("'ten minutes' is not valid")
        person.scroll_to("Limits")
        person.settle()
        person.screenshot("form-refused", self._images)

    def _run_that_goes_on(self) -> None:
        person = self._person(height=1100)
        person.open_form(self._deployment("cpu"))
        person.write_json("Hyperparameters", '{"epochs": 40, "lr": 0.004}')
        run_id = person.submit()
        wait_until(lambda: self._shows_its_speed(run_id))
        person.open_run(run_id)
        person.look_at("Artifacts")
        person.sees("progress-digits")
        person.settle()
        person.screenshot("run", self._images)
        self._wait_for_end(run_id)
        self._keep_artifacts(run_id, {"job-digits": "report", "plot-digits": "plot"})

    def _failure(self) -> None:
        job = TrainingJob.load(ROOT / "examples" / "faults" / "job.yaml").model_dump(mode="json")
        job["hyperparameters"] |= {"fault": "raise", "fault_at": 2, "step_s": 0.1}
        run = self._client.create_flow_run_from_deployment(
            self._deployment("cpu"), parameters={"job": job}
        )
        self._wait_for_end(str(run.id))
        self._keep_artifacts(str(run.id), {"job-faults": "failure"})

    def _others(self) -> None:
        person = self._person()
        person.open_form(self._deployment("digits"))
        person.scroll_to("Hyperparameters")
        person.settle()
        person.screenshot("form-of-algorithm", self._images)
        person = self._person()
        person.open_deployment(self._deployment("nightly"))
        person.sees("Schedules")
        person.settle()
        person.screenshot("schedule", self._images)

    def _shows_its_speed(self, run_id: str) -> bool:
        progress = self._artifacts(run_id).get("progress-digits")
        return progress is not None and "steps/s" in (progress.description or "")

    def _artifacts(self, run_id: str) -> dict[str, Artifact]:
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(run_id)]))
        found = self._client.read_artifacts(artifact_filter=of_run)
        return {artifact.key or "": artifact for artifact in found}

    def _keep_artifacts(self, run_id: str, names: dict[str, str]) -> None:
        artifacts = self._artifacts(run_id)
        for key, name in names.items():
            person = self._person()
            person.open_artifact(artifacts[key].id)
            person.sees(key)
            person.settle()
            person.screenshot(name, self._images)

    def _wait_for_end(self, run_id: str) -> None:
        def is_over() -> bool:
            state = self._client.read_flow_run(UUID(run_id)).state
            return state is not None and state.is_final()

        wait_until(is_over)


def _make_form_of_algorithm(api: str, folder: Path) -> None:
    file = folder / "algorithm.yaml"
    file.write_text(_ALGORITHM.format(code=ROOT / "examples" / "digits"))
    env = {"PREFECT_API_URL": api, "TRAINJOB_REGISTRY": str(folder / "registry")}
    _run("-m", "flows", "algorithm", "register", "digits", str(file), **env)
    _run("-m", "flows", "algorithm", "deploy", "digits", **env)


def _run(*words: str, **env: str) -> None:
    subprocess.run([sys.executable, *words], cwd=ROOT, env=os.environ | env, check=True)


def _make_small(picture: Path) -> None:
    """Write a picture with few colors: a third of the bytes, and nobody sees it."""
    with Image.open(picture) as image:
        few = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    few.save(picture, optimize=True)


if __name__ == "__main__":
    arguments = [Path(word).absolute() for word in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as temporary:
        main(arguments[0], *(arguments[1:] or [Path(temporary)]))
