"""From a training to predictions: the digits are learned, saved as a model, and told apart."""

import csv
import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.__main__ import main
from trainjob.registry.folder import registry_of_machine
from trainjob.registry.records import Reference, SavedModel

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]


def job_file(folder: Path, example: str, **changes) -> Path:
    """Write the job of an example with other places for its data and its results."""
    job = yaml.safe_load((ROOT / "examples" / example / "job.yaml").read_text())
    job["algorithm"]["code"]["url"] = str(ROOT / "examples" / "digits")
    file = folder / f"{example}.yaml"
    file.write_text(yaml.safe_dump(job | changes))
    return file


def run(job: Path, server: str) -> None:
    """Run a job in a process of its own: the command changes what signals do to its process."""
    command = [sys.executable, "-m", "flows", "run", str(job)]
    env = os.environ | {"PREFECT_API_URL": server}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_trained_network_is_saved_and_tells_new_images_apart(
    digits_dataset: Path, tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path / "registry"))
    data, new = tmp_path / "data", tmp_path / "new"
    shutil.copytree(digits_dataset, data)
    new.mkdir()
    (data / "t10k-images-idx3-ubyte.gz").rename(new / "t10k-images-idx3-ubyte.gz")
    labels = gzip.decompress((data / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    (data / "t10k-labels-idx1-ubyte.gz").unlink()

    output = {"name": "train_url", "url": str(tmp_path / "trained")}
    training = job_file(
        tmp_path,
        "digits",
        inputs=[{"name": "data_url", "url": str(data)}],
        outputs=[output],
        checkpoints=None,
    )
    run(training, prefect_server)
    assert main(["model", "register", "digits", output["url"]]) == 0
    model = registry_of_machine().find("model", Reference("digits"))
    assert isinstance(model, SavedModel)
    assert model.metrics["loss"] < 1
    inference = job_file(
        tmp_path,
        "digits_inference",
        inputs=[{"name": "data_url", "url": str(new)}, {"name": "ckpt_url", "model": "digits"}],
        outputs=[{"name": "train_url", "url": str(tmp_path / "told")}],
    )
    run(inference, prefect_server)

    with (tmp_path / "told" / "predictions.csv").open() as file:
        told = [int(row["digit"]) for row in csv.DictReader(file)]
    num_right = sum(digit == label for digit, label in zip(told, labels, strict=True))
    assert num_right / len(labels) >= 0.9


def test_inference_without_a_saved_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = [{"name": "data_url", "url": str(tmp_path)}]

    assert main(["check", str(job_file(tmp_path, "digits_inference", inputs=inputs))]) == 2

    assert (
        "inputs: asked for a saved model for kind: inference, found none; "
        "add {name: ckpt_url, model: NAME@VERSION}; see python -m flows model list"
    ) in capsys.readouterr().err
