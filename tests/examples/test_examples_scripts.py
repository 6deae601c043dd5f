"""The examples train as their own scripts, without trainjob around them."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DIGITS = EXAMPLES / "digits"
REAL_MNIST = ROOT.parent / "shared/data/mnist"
BIN = Path(sys.executable).parent
GOOD = 0.95
TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node", "2")

needs_mnist = pytest.mark.skipif(
    not REAL_MNIST.is_dir(), reason=f"the real MNIST files are not at {REAL_MNIST}"
)


def run(
    argv: Sequence[str | Path], *, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> str:
    """Run to the end with one thread a rank and return what was printed."""
    own = {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env={**os.environ, **own, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def torchrun(data: Path, out: Path, *arguments: str) -> None:
    channels = ("--data_url", data, "--train_url", out)
    run([*TORCHRUN, DIGITS / "train.py", *channels, *arguments])


def mpirun(script: Path, *arguments: str | Path) -> str:
    # -m mpi4py: a rank that raises ends the others, too.
    return run(["mpirun", "-n", "2", sys.executable, "-m", "mpi4py", script, *arguments])


def metrics(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


def losses(out: Path) -> list[float]:
    return [epoch["loss"] for epoch in metrics(out)["history"]]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    run([sys.executable, EXAMPLES / "make_dataset.py", folder])
    return folder


@pytest.fixture
def mpi() -> None:
    pytest.importorskip("mpi4py", reason="the extra mpi is not installed")
    if shutil.which("mpirun", path=f"{BIN}{os.pathsep}{os.environ['PATH']}") is None:
        pytest.skip("mpirun is not on PATH")


def test_the_dataset_is_the_same_bytes_every_time(dataset: Path, tmp_path: Path) -> None:
    again = tmp_path / "not there yet"

    printed = run([sys.executable, EXAMPLES / "make_dataset.py", again])

    names = sorted(path.name for path in dataset.iterdir())
    assert names == [
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    ]
    assert all((again / name).read_bytes() == (dataset / name).read_bytes() for name in names)
    assert sorted(path.name for path in again.iterdir()) == names
    assert "train-images-idx3-ubyte.gz: 1437 x 8 x 8 bytes" in printed


def test_the_same_digits_come_as_one_zip_and_as_pictures(dataset: Path, tmp_path: Path) -> None:
    for form in ("zip", "pictures"):
        run([sys.executable, EXAMPLES / "make_dataset.py", tmp_path / form, "--as", form])

    with zipfile.ZipFile(tmp_path / "zip" / "digits.zip") as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    assert packed == {path.name: path.read_bytes() for path in dataset.iterdir()}
    read = "digits.load_digits(pathlib.Path(sys.argv[i]))[{}].{}".format
    same = " and ".join(
        f"torch.equal(*[{read(part, field)} for i in (1, 2)])"
        for part in (0, 1)
        for field in ("images", "labels")
    )
    code = f"import digits, pathlib, sys, torch; print({same})"
    argv: list[str | Path] = [sys.executable, "-c", code, dataset, tmp_path / "pictures"]
    assert run(argv, env={"PYTHONPATH": str(DIGITS)}) == "True\n"


def test_two_torchrun_ranks_learn_the_digits(dataset: Path, tmp_path: Path) -> None:
    torchrun(dataset, tmp_path, "--an_argument_of_the_platform", "1")

    assert metrics(tmp_path)["test_accuracy"] >= GOOD
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert weights["7.weight"].shape == (10, 2 * 2 * 32)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoints", "metrics.json", "model.pt"]


def test_one_seed_gives_the_same_losses_twice(dataset: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        torchrun(dataset, tmp_path / name, "--epochs", "2", "--seed", "7")

    assert losses(tmp_path / "first") == losses(tmp_path / "second")


def test_the_script_runs_without_a_launcher(dataset: Path, tmp_path: Path) -> None:
    printed = run(
        [
            *(sys.executable, DIGITS / "train.py", "--epochs", "1"),
            *("--data_url", dataset, "--train_url", tmp_path / "made by the script"),
        ]
    )

    assert printed.startswith("epoch 1: loss ")
    assert (tmp_path / "made by the script/model.pt").is_file()


@needs_mnist
def test_torchrun_learns_the_real_mnist_as_it_is(tmp_path: Path) -> None:
    torchrun(REAL_MNIST, tmp_path, "--epochs", "2")

    assert metrics(tmp_path)["test_accuracy"] >= GOOD


@pytest.mark.mpi
def test_two_mpi_ranks_learn_the_digits_as_torchrun_does(
    mpi: None, dataset: Path, tmp_path: Path
) -> None:
    channels = ("--data_url", dataset, "--train_url", tmp_path / "mpi")

    mpirun(DIGITS / "train_mpi.py", *channels)

    torchrun(dataset, tmp_path / "torchrun", "--epochs", "1")
    assert metrics(tmp_path / "mpi")["test_accuracy"] >= GOOD
    # The schedule of the first epoch does not depend on how many follow.
    assert losses(tmp_path / "mpi")[0] == pytest.approx(losses(tmp_path / "torchrun")[0], rel=1e-3)


@pytest.mark.mpi
def test_mpi_ranks_differ_until_the_broadcast_and_share_gradients_in_place(
    mpi: None, tmp_path: Path
) -> None:
    script = tmp_path / "two_ranks.py"
    script.write_text(
        f"""
import sys
sys.path.insert(0, {str(DIGITS)!r})
import torch
from digits import DigitNet
from mpi4py import MPI
from train_mpi import broadcast_weights, join_gradients

comm = MPI.COMM_WORLD
torch.manual_seed(comm.rank)
model = DigitNet(8, 8, channels=4)
weights = model[0].weight

def num_different():
    return len(set(comm.allgather(tuple(weights.flatten().tolist()))))

assert num_different() == comm.size == 2
broadcast_weights(model, comm)
assert num_different() == 1

gradients = join_gradients(model)
images = torch.full((1, 1, 8, 8), 100 + comm.rank, dtype=torch.uint8)
model(images).square().sum().backward()
assert weights.grad.untyped_storage().data_ptr() == gradients.untyped_storage().data_ptr()
mine = weights.grad.clone()
comm.Allreduce(MPI.IN_PLACE, gradients)
other = comm.sendrecv(mine, dest=1 - comm.rank)
assert not torch.equal(mine, other)
assert torch.equal(weights.grad, mine + other)
"""
    )

    mpirun(script)


@pytest.mark.parametrize(("launcher", "num_ranks"), [((), 1), ((*TORCHRUN, "--no-python"), 2)])
def test_the_startup_command_learns_the_digits(
    launcher: Sequence[str], num_ranks: int, dataset: Path, tmp_path: Path
) -> None:
    command = ("sh", "start.sh", "--train", dataset, "--output", tmp_path, "--epochs", "12")
    env = {"TRAIN": str(dataset), "OUTPUT": str(tmp_path)}

    printed = run([*launcher, *command], cwd=EXAMPLES / "startup_command", env=env)

    assert f"rank 0 of {num_ranks} reads {dataset} and writes {tmp_path}\n" in printed
    assert metrics(tmp_path)["test_accuracy"] >= GOOD
    assert torch.load(tmp_path / "model.pt", weights_only=True)


@needs_mnist
def test_the_startup_command_learns_the_real_mnist_as_it_is(tmp_path: Path) -> None:
    command = ("sh", "start.sh", "--train", REAL_MNIST, "--output", tmp_path, "--epochs", "2")
    env = {"TRAIN": str(REAL_MNIST), "OUTPUT": str(tmp_path)}

    run(command, cwd=EXAMPLES / "startup_command", env=env)

    assert metrics(tmp_path)["test_accuracy"] >= GOOD
