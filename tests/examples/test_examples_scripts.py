"""The examples train as their own scripts, without trainjob around them."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DIGITS = EXAMPLES / "digits"
REAL_MNIST = ROOT.parent / "shared/data/mnist"
BIN = Path(sys.executable).parent
TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node", "2")


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


def mpirun(script: Path, *arguments: str | Path) -> str:
    # -m mpi4py: a rank that raises ends the others, too.
    return run(["mpirun", "-n", "2", sys.executable, "-m", "mpi4py", script, *arguments])


def metrics(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


def losses(out: Path) -> list[float]:
    return [epoch["loss"] for epoch in metrics(out)["history"]]


@pytest.fixture
def mpi() -> None:
    pytest.importorskip("mpi4py", reason="the extra mpi is not installed")
    if shutil.which("mpirun", path=f"{BIN}{os.pathsep}{os.environ['PATH']}") is None:
        pytest.skip("mpirun is not on PATH")


def test_the_dataset_is_the_same_bytes_every_time(digits_dataset: Path, tmp_path: Path) -> None:
    again = tmp_path / "not there yet"

    printed = run([sys.executable, EXAMPLES / "make_dataset.py", again])

    names = sorted(path.name for path in digits_dataset.iterdir())
    assert names == [
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    ]
    assert all(
        (again / name).read_bytes() == (digits_dataset / name).read_bytes() for name in names
    )
    assert sorted(path.name for path in again.iterdir()) == names
    assert "train-images-idx3-ubyte.gz: 1437 x 8 x 8 bytes" in printed


def test_the_same_digits_come_as_one_zip_and_as_pictures(
    digits_dataset: Path, digits_in: Callable[[str], Path]
) -> None:
    with zipfile.ZipFile(digits_in("zip") / "digits.zip") as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    assert packed == {path.name: path.read_bytes() for path in digits_dataset.iterdir()}
    read = "digits.load_digits(pathlib.Path(sys.argv[i]))[{}].{}".format
    same = " and ".join(
        f"torch.equal(*[{read(part, field)} for i in (1, 2)])"
        for part in (0, 1)
        for field in ("images", "labels")
    )
    code = f"import digits, pathlib, sys, torch; print({same})"
    argv: list[str | Path] = [sys.executable, "-c", code, digits_dataset, digits_in("pictures")]
    assert run(argv, env={"PYTHONPATH": str(DIGITS)}) == "True\n"


@pytest.fixture(scope="module")
def by_torchrun(digits_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two torchrun ranks write in as few epochs as show that they learn."""
    out = tmp_path_factory.mktemp("torchrun")
    channels = ("--data_url", digits_dataset, "--train_url", out)
    run([*TORCHRUN, DIGITS / "train.py", *channels, "--epochs", "2", "--of_the_platform", "1"])
    return out


def test_two_torchrun_ranks_learn_and_save_the_weights(by_torchrun: Path) -> None:
    first, second = losses(by_torchrun)
    assert second < first
    weights = torch.load(by_torchrun / "model.pt", weights_only=True)
    assert weights["7.weight"].shape == (10, 2 * 2 * 32)
    names = sorted(path.name for path in by_torchrun.iterdir())
    assert names == ["checkpoints", "metrics.json", "model.pt"]


def test_the_script_runs_without_a_launcher(digits_dataset: Path, tmp_path: Path) -> None:
    printed = run(
        [
            *(sys.executable, DIGITS / "train.py", "--epochs", "1"),
            *("--data_url", digits_dataset, "--train_url", tmp_path / "made by the script"),
        ]
    )

    assert printed.startswith("epoch 1: loss ")
    assert (tmp_path / "made by the script/model.pt").is_file()


@pytest.mark.mpi
def test_two_mpi_ranks_learn_the_digits_as_torchrun_does(
    mpi: None, digits_dataset: Path, by_torchrun: Path, tmp_path: Path
) -> None:
    channels = ("--data_url", digits_dataset, "--train_url", tmp_path)

    mpirun(DIGITS / "train_mpi.py", *channels, "--epochs", "2")

    first, second = losses(tmp_path)
    assert second < first
    assert first == pytest.approx(losses(by_torchrun)[0], rel=1e-3)


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


def test_the_startup_command_learns_the_digits(digits_dataset: Path, tmp_path: Path) -> None:
    printed = run_startup_command(digits_dataset, tmp_path, *TORCHRUN, "--no-python", epochs=3)

    assert f"rank 0 of 2 reads {digits_dataset} and writes {tmp_path}\n" in printed
    assert metrics(tmp_path)["test_accuracy"] >= 0.8
    assert torch.load(tmp_path / "model.pt", weights_only=True)


def test_the_startup_command_runs_without_a_launcher(digits_dataset: Path, tmp_path: Path) -> None:
    """On the real MNIST as it is, if it is here."""
    data = REAL_MNIST if REAL_MNIST.is_dir() else digits_dataset

    printed = run_startup_command(data, tmp_path, epochs=1)

    assert f"rank 0 of 1 reads {data} and writes {tmp_path}\n" in printed
    assert metrics(tmp_path)["test_accuracy"] >= 0.8


def run_startup_command(data: Path, out: Path, *launcher: str, epochs: int) -> str:
    command = ("sh", "start.sh", "--train", data, "--output", out, "--epochs", str(epochs))
    env = {"TRAIN": str(data), "OUTPUT": str(out)}
    return run([*launcher, *command], cwd=EXAMPLES / "startup_command", env=env)
