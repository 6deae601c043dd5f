"""The fire drill of examples/faults shows what its page says, with ranks of torch and of MPI.

Only what `test_fault_matrix` has no ranks for: a loader of torch that hangs, and a collective of
MPI, whose ranks spin instead of waiting.
"""

import json
import re
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.watched_runs import ROOT, Ended, run, stored_steps
from trainjob.storage.receipt import verify_receipt

FOLDER = ROOT / "examples" / "faults"
FAULT_AT, LAST = 2, 4
CAUSES = {
    "loader-torchrun": r"it is in train.py:\d+ wait_for_loader while the others wait in all_reduce",
    "collective-mpi": r"it is in train.py:\d+ leave_out_\w+ while the others wait in allreduce",
}
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.mpi,
    pytest.mark.timeout(1500),
    pytest.mark.usefixtures("prefect_server"),
]


def drill(folder: Path, name: str) -> Ended:
    """Have a fault of the example, in less time than a person wants to look at it."""
    job: dict[str, Any] = yaml.safe_load((FOLDER / "job.yaml").read_text())
    job["algorithm"]["code"]["url"] = str(FOLDER)
    job["outputs"][0]["url"] = str(folder / "out")
    job["checkpoints"]["url"] = str(folder / "checkpoints")
    fault, _, job["launcher"] = name.partition("-")
    job["hyperparameters"] = {"fault": fault, "fault_at": FAULT_AT, "steps": LAST, "step_s": 0}
    # All at the same time take longer than one for a person.
    job["limits"] |= {"stall": "10s", "grace": "2s", "auto_stop": "10m"}
    return run(job | {"name": name})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drill")


@pytest.fixture(scope="module")
def drills(folder: Path, prefect_server: str) -> dict[str, "Future[Ended]"]:
    """Have all faults at the same time, each to the end of its run."""
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as pool:
        patch.setenv("TRAINJOB_WORKDIR", str(folder / "runs"))
        return {
            name: pool.submit(copy_context().run, drill, folder / name, name) for name in CAUSES
        }


@pytest.mark.parametrize("name", CAUSES)
def test_a_fault_of_the_drill_is_named_and_changes_nothing_of_the_model(
    name: str, drills: dict[str, "Future[Ended]"], folder: Path
) -> None:
    ended = drills[name].result()

    model = 0.0
    for step in range(1, LAST + 1):
        model = 0.9 * model + (step + 2 * step)  # what two ranks add up
    assert ended.state.name == "Completed", ended.state.message
    assert ended.processes_left == {}
    assert re.search(CAUSES[name], ended.failure.headline), ended.failure.headline
    assert [attempt.resumed_from for attempt in ended.report.attempts] == [None, FAULT_AT]
    assert stored_steps(folder / name / "checkpoints")[-1] == LAST
    assert verify_receipt(str(folder / name / "out"), None).is_result
    assert json.loads((folder / name / "out" / "model.json").read_text())["model"] == model
