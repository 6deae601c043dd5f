"""The walkthroughs of docs/products.md, each with the job file that the page shows."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flows.__main__ import main
from flows.training_job import training_job
from tests.e2e import product_scripts
from trainjob.errors import JobError
from trainjob.job import TrainingJob
from trainjob.launch.environment import search_path
from trainjob.launch.launch import Mount
from trainjob.launch.mounts import mount_problems

ROOT = Path(__file__).parent.parent.parent
DIGITS = (ROOT / "examples" / "digits" / "digits.py").read_text()
FOLDERS = ("/code", "/dataset", "/model", "/cache", "/home/ma-user", "/opt/ml")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500), pytest.mark.usefixtures("prefect_server")]


class Place:
    """A bucket in which people of the walkthroughs put their things, and find the results."""

    def __init__(self, s3: Any, digits_in: Callable[[str], Path]) -> None:
        self.name = s3.new_bucket()
        self._s3 = s3
        self._digits_in = digits_in

    def put(self, key: str, content: str | bytes) -> None:
        self._s3.put(self.name, key, content.encode() if isinstance(content, str) else content)

    def put_dataset(self, form: str, prefix: str) -> None:
        """Put the handwritten digits, as a folder of IDX files or as a zip."""
        for file in self._digits_in(form).iterdir():
            self.put(prefix if form == "zip" else f"{prefix}/{file.name}", file.read_bytes())

    def results(self, prefix: str) -> dict[str, bytes]:
        """Return the files of the only run below a prefix."""
        keys = [key for key in self._s3.keys(self.name, prefix) if "/_trainjob/" not in key]
        return {key.split("/", 2)[2]: self._s3.get(self.name, key) for key in keys}


@pytest.fixture
def place(digits_in: Callable[[str], Path], s3: Any, monkeypatch: pytest.MonkeyPatch) -> Place:
    for variable, value in s3.env.items():
        monkeypatch.setenv(variable, value)
    return Place(s3, digits_in)


@pytest.fixture(autouse=True)
def machine_as_before() -> Any:
    """See that no folder of a product is left on the machine, nor was there before."""
    mounts = [Mount(folder, Path("/nowhere")) for folder in FOLDERS]
    if problems := mount_problems(mounts, search_path(os.environ)):
        pytest.skip(str(problems[0]))
    assert [folder for folder in FOLDERS if Path(folder).exists()] == []
    yield
    assert [folder for folder in FOLDERS if Path(folder).exists()] == []


def job_of_page(product: str, place: Place) -> dict[str, Any]:
    """Return the job file that the page shows, with our bucket for that of the page."""
    job: dict[str, Any] = yaml.safe_load(_of_page(rf"^```yaml file={product}\.yaml\n", place))
    return job


def _of_page(start: str, place: Place) -> str:
    """Return the only block of the page that starts so."""
    page = (ROOT / "docs" / "products.md").read_text()
    [text] = re.findall(rf"{start}(.*?)^```$", page, re.M | re.S)
    return str(text).replace("s3://bucket/", f"s3://{place.name}/")


def train(job: dict[str, Any]) -> None:
    assert training_job(TrainingJob.parse(job)).state == "Completed"


@pytest.mark.mpi
def test_the_pytorch_mpi_task_of_tione(place: Place, tmp_path: Path) -> None:
    package = tmp_path / "mnist.pytorch.zip"
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("start.sh", product_scripts.TIONE_START)
        archive.writestr("main.py", product_scripts.TIONE_MAIN)
        archive.writestr("digits.py", DIGITS)
    place.put("mnist.pytorch.zip", package.read_bytes())
    place.put_dataset("idx", "ti-images")

    train(job_of_page("tione", place))

    result = json.loads(place.results("output/")["result.json"])
    assert result["ranks"] == 2
    assert result["accuracy"] > 0.7


def test_the_gpu_form_of_openi(place: Place, tmp_path: Path) -> None:
    job = job_of_page("openi-gpu", place)
    repository = tmp_path / "group" / "MNIST_PytorchExample_GPU.git"
    repository.mkdir(parents=True)
    (repository / "train.py").write_text(product_scripts.OPENI_GPU)
    (repository / "digits.py").write_text(DIGITS)
    person = ("-c", "user.name=me", "-c", "user.email=me@example.org")
    for words in (
        ("init", "--quiet", "--initial-branch=main"),
        ("add", "--all"),
        (*person, "commit", "--quiet", "--message=one"),
    ):
        subprocess.run(["git", *words], cwd=repository, check=True)
    url = job["algorithm"]["code"]["url"]
    job["algorithm"]["code"]["url"] = url.replace("git+https://host", f"git+file://{tmp_path}")
    place.put_dataset("zip", "MnistDataset_torch.zip")

    train(job)

    results = place.results("model/")
    told = json.loads(results["result.json"])
    assert told["args"] == {"epoch_size": 2, "batch_size": 128}
    assert {"train.py", "digits.py"} <= set(told["code"])
    assert told["accuracy"] > 0.5
    assert results["mnist.pkl"]


def test_the_npu_form_of_openi_without_the_device(place: Place, tmp_path: Path) -> None:
    place.put("MNIST_Example/train.py", product_scripts.OPENI_NPU)
    place.put("MNIST_Example/digits.py", DIGITS)
    place.put_dataset("zip", "MNISTData.zip")
    place.put("pretrained/mnist.pkl", pretrained(tmp_path))

    train(job_of_page("openi-npu", place))

    results = place.results("output/")
    told = json.loads(results["result.json"])
    assert told["epoch_size"] == 2
    assert told["images"] == 1437
    assert results["mnist.ckpt"]
    assert "work" not in str(list(results))


def pretrained(folder: Path) -> bytes:
    """Return a saved network of the shape that the script expects, as an earlier run wrote it."""
    code = folder / "pretrain"
    code.mkdir()
    (code / "digits.py").write_text(DIGITS)
    words = "import torch; from digits import DigitNet; "
    words += "torch.save(DigitNet(8, 8, 8).state_dict(), 'mnist.pkl')"
    subprocess.run([sys.executable, "-c", words], cwd=code, check=True)
    assert torch.load(code / "mnist.pkl")
    return (code / "mnist.pkl").read_bytes()


def test_an_algorithm_and_a_training_job_of_modelarts(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path / "registry"))
    place.put("demo-code/train.py", product_scripts.MODELARTS)
    place.put("data/a.txt", "1")
    place.put("data/b.txt", "2")
    file = tmp_path / "modelarts-algorithm.yaml"
    file.write_text(yaml.safe_dump(job_of_page("modelarts-algorithm", place)))
    monkeypatch.chdir(tmp_path)
    for line in _of_page(r"^```\n(?=python -m flows algorithm)", place).splitlines():
        assert main(line.split()[3:]) == 0
    job = job_of_page("modelarts", place)

    with pytest.raises(JobError) as refused:
        TrainingJob.parse(
            job
            | {"inputs": [{"name": "data_url", "url": f"s3://{place.name}/data/"}]}
            | {"hyperparameters": {"epochs": 11}, "resources": {"device": "npu"}}
        )
    train(job)

    assert {problem.field for problem in refused.value.problems} >= {
        "inputs[0].url",
        "hyperparameters.epochs",
        "resources.device",
    }
    assert json.loads(place.results("output/")["result.json"]) == {
        "data_url": "/home/ma-user/modelarts/inputs/data_url_0",
        "train_url": "/home/ma-user/modelarts/outputs/train_url_0",
        "epochs": 2,
        "lr": 0.01,
        "optimizer": "adam",
        "total": 4.0,
    }
    assert [key for key in place.results("logs/") if key.endswith("rank-1.log")]
