"""Engine and constraints of an algorithm are saved with it, and hold for jobs that name it."""

from pathlib import Path

import pytest
import yaml

from tests.jobs import make_job
from trainjob.errors import JobError
from trainjob.job import TrainingJob
from trainjob.registry.folder import registry_of_machine
from trainjob.registry.register import register_algorithm
from trainjob.resources import Constraints

ENGINE = "PyTorch / 1.9-py3.6-cuda11.1-gpu"


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """The file of an algorithm for one card of cuda."""
    algorithm = make_job(tmp_path)["algorithm"] | {
        "engine": ENGINE,
        "constraints": {"devices": ["cuda"], "multi_card": False, "auto_search": True},
    }
    file = tmp_path / "algorithm.yaml"
    file.write_text(yaml.safe_dump({"algorithm": algorithm}))
    return file


def test_an_algorithm_keeps_its_engine_and_constraints(described: Path) -> None:
    registry = registry_of_machine()

    register_algorithm(registry, "copy", described, None)

    [saved] = registry.survey("algorithm").records
    definition = saved.model_dump()["definition"]
    assert definition["engine"] == ENGINE
    assert Constraints(**definition["constraints"]) == Constraints(
        devices=("cuda",), multi_card=False, distributed=True, auto_search=True
    )


def test_a_job_is_held_to_the_constraints_of_the_saved_algorithm(
    described: Path, tmp_path: Path
) -> None:
    register_algorithm(registry_of_machine(), "copy", described, None)
    job = make_job(tmp_path, algorithm="copy", launcher="torchrun")

    with pytest.raises(JobError) as raised:
        TrainingJob.parse(job | {"resources": {"processes_per_node": 2}})

    assert [(p.id, p.found) for p in raised.value.problems] == [
        ("constraint-device", "the algorithm copy@1, which is for cuda alone"),
        (
            "constraint-processes-per-node",
            "the algorithm copy@1, which is for one card and one rank alone (multi_card: false)",
        ),
    ]
    assert TrainingJob.parse(job | {"resources": {"flavor": "1c1g V100*1"}}).algorithm.engine
