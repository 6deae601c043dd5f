"""Jobs on NPUs, which are SIMULATED here (tests/npu_simulation), by the path of real ones.

What is simulated: the device files, the device ``npu`` of torch and the backend hccl. Everything
else is what runs on a machine with NPUs: the flow, the leases, the environment, the ranks, the
example, unchanged.
"""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows.training_job import training_job
from tests.jobs import make_job
from tests.npu_simulation.build import simulated_npu
from tests.waiting import wait_until
from trainjob.events import Event, RankOutput, listening
from trainjob.job import Checkpoints, Logs, TrainingJob
from trainjob.launch import card_leases, devices
from trainjob.report import RunReport
from trainjob.storage.receipt import verify_receipt

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.npu,
    pytest.mark.timeout(1500),
    pytest.mark.usefixtures("prefect_server"),
]

ON_A_CARD = """
import argparse, os, pathlib, time
import torch

parser = argparse.ArgumentParser()
parser.add_argument("--data_url")
parser.add_argument("--train_url", type=pathlib.Path)
parser.add_argument("--go", type=pathlib.Path, help="train until this file is there")
args = parser.parse_args()
print("trains on card", os.environ["ASCEND_RT_VISIBLE_DEVICES"], flush=True)
begun = time.time_ns()
weight = torch.ones(2, device="npu") / 2
while not args.go.exists():
    weight *= 0.9
    time.sleep(0.01)
assert weight.sum().item() < 2 and torch.npu.device_count() == 1
(args.train_url / "times.txt").write_text(f"{begun} {time.time_ns()}")
"""


@pytest.fixture
def npus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two simulated NPUs; gives the folder of their device files."""
    dev_dir = tmp_path / "dev"
    dev_dir.mkdir()
    for name in ("davinci0", "davinci1"):
        (dev_dir / name).touch()
    monkeypatch.setattr(devices, "DEV_DIR", dev_dir)
    monkeypatch.setenv("TRAINJOB_CARDS_DIR", str(tmp_path / "cards"))
    monkeypatch.setenv("PYTHONPATH", str(simulated_npu(tmp_path / "npu")))
    return dev_dir


@pytest.mark.usefixtures("npus")
def test_the_digits_example_runs_unchanged_on_two_simulated_npus(
    digits_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    example = TrainingJob.load(ROOT / "examples" / "digits" / "job.yaml")
    [data], [results] = example.inputs, example.outputs
    job = example.model_copy(
        update={
            "inputs": [data.model_copy(update={"url": str(digits_dataset)})],
            "outputs": [results.model_copy(update={"url": str(out)})],
            "checkpoints": Checkpoints(url=str(tmp_path / "checkpoints")),
            "logs": Logs(url=str(tmp_path / "logs")),
            "resources": example.resources.model_copy(update={"device": "npu"}),
            "hyperparameters": example.hyperparameters | {"epochs": 2, "batch_size": 64},
        }
    )

    report = training_job(job)

    assert report.state == "Completed"
    assert json.loads((out / "metrics.json").read_text())["test_accuracy"] >= 0.8
    assert verify_receipt(str(out), None).problems == ()
    [order] = (tmp_path / "runs").glob("*/logs/attempt-0/records/order.json")
    assert json.loads(order.read_text())["device"] == "npu"


def test_of_two_jobs_for_one_simulated_card_the_second_waits_and_then_trains(
    npus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (npus / "davinci1").unlink()
    monkeypatch.setattr(card_leases, "_POLL_S", 0.05)
    has_begun = threading.Event()

    def note(event: Event) -> None:
        if isinstance(event, RankOutput) and "trains on card 0" in event.lines:
            has_begun.set()

    def run(name: str) -> RunReport:
        with listening(note):
            return training_job(job_on_a_card(tmp_path, name))

    with ThreadPoolExecutor() as pool:
        first = pool.submit(run, "first")
        wait_until(has_begun.is_set)
        second = pool.submit(run, "second")
        wait_until(lambda: "waiting for 1 card of npu: 0 of 1 free" in caplog.text)
        (tmp_path / "go").touch()
        reports = [first.result(), second.result()]

    assert [report.state for report in reports] == ["Completed", "Completed"]
    (_, ended), (begun, _) = (times_of(tmp_path, name) for name in ("first", "second"))
    assert ended < begun


def job_on_a_card(folder: Path, name: str) -> TrainingJob:
    values: dict[str, Any] = make_job(
        folder,
        ON_A_CARD,
        name=name,
        outputs=[{"name": "train_url", "url": str(folder / name)}],
        logs={"url": str(folder / f"logs-{name}")},
        resources={"device": "npu"},
        hyperparameters={"go": str(folder / "go")},
    )
    return TrainingJob.parse(values)


def times_of(folder: Path, name: str) -> tuple[int, int]:
    """Return when the script of a job began and ended."""
    begun, ended = (folder / name / "times.txt").read_text().split()
    return int(begun), int(ended)
