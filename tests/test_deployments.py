"""prefect.yaml: what it offers is what the examples and the model say."""

from pathlib import Path

import yaml

from trainjob.job import TrainingJob

ROOT = Path(__file__).parent.parent
[CPU, CHECK] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def test_the_default_job_is_the_digits_example() -> None:
    default = TrainingJob.parse(CPU["parameters"]["job"]).resolved(ROOT)

    assert default == TrainingJob.load(ROOT / "examples" / "digits" / "job.yaml")


def test_the_default_job_gives_every_key() -> None:
    """A partial default makes the form of the UI choose a wrong variant."""
    given = CPU["parameters"]["job"]

    assert TrainingJob.parse(given).model_dump(mode="json") == given


def test_the_entrypoint_is_dotted() -> None:
    """The path form imports the file as a module of its own and breaks `import tasks`."""
    assert CPU["entrypoint"] == "flows.training_job.training_job"
    assert CHECK["entrypoint"] == "flows.check_job.check_training_job"


def test_a_check_is_offered_for_the_same_job() -> None:
    assert CHECK["parameters"] == CPU["parameters"]
    assert CHECK["work_pool"]["name"] == CPU["work_pool"]["name"]
