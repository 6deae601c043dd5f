"""The example folders are complete, and what reads the digits says what is wrong with them."""

import gzip
import importlib.util
import struct
import sys
from pathlib import Path
from types import ModuleType

import pytest

from trainjob.algorithm import CommandAlgorithm
from trainjob.job import TrainingJob

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ["digits", "digits_mpi", "startup_command"]


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # The code folder of an example is uploaded as it is: leave no __pycache__ in it.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location("digits", EXAMPLES / "digits/digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_set(folder: Path, prefix: str, num_images: int, *, suffix: str = ".gz") -> None:
    """Write images of 4 x 6 pixels; each holds its own number, which is its label, too."""
    values = bytes(number for number in range(num_images) for _ in range(4 * 6))
    files = {
        "images-idx3-ubyte": struct.pack(">4B3I", 0, 0, 8, 3, num_images, 4, 6) + values,
        "labels-idx1-ubyte": struct.pack(">4BI", 0, 0, 8, 1, num_images) + bytes(range(num_images)),
    }
    for name, data in files.items():
        content = gzip.compress(data) if suffix == ".gz" else data
        (folder / f"{prefix}-{name}{suffix}").write_bytes(content)


@pytest.mark.parametrize("name", NAMES)
def test_the_job_file_of_an_example_names_what_is_there(name: str) -> None:
    job = TrainingJob.load(EXAMPLES / name / "job.yaml")

    code = Path(job.algorithm.code.url)
    demo = str(EXAMPLES.parent / ".demo")
    if isinstance(job.algorithm, CommandAlgorithm):
        started = job.algorithm.command.split()[-1]
    else:
        started = job.algorithm.boot_file
    assert (code / started).is_file()
    assert [channel.url for channel in job.inputs] == [f"{demo}/datasets/digits/"]
    assert [channel.url for channel in job.outputs] == [f"{demo}/runs/{name}/{{run_id}}/"]
    assert job.world_size == 2


@pytest.mark.parametrize("name", ["digits", "digits_mpi"])
def test_the_job_of_an_example_that_saves_is_restarted(name: str) -> None:
    job = TrainingJob.load(EXAMPLES / name / "job.yaml")

    demo = str(EXAMPLES.parent / ".demo")
    assert job.checkpoints is not None
    assert job.checkpoints.url == f"{demo}/checkpoints/{name}/{{run_id}}/"
    assert job.limits.auto_restart == 2
    assert job.limits.stall is not None


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_of_an_example_says_how_to_run_it_in_five_lines(name: str) -> None:
    lines = (EXAMPLES / name / "README.md").read_text().splitlines()

    assert len(lines) == 5
    assert f"`python -m flows run examples/{name}/job.yaml`" in lines[3]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_two_sets_of_mnist_are_kept_apart(
    digits: ModuleType, tmp_path: Path, suffix: str
) -> None:
    write_set(tmp_path, "train", 20, suffix=suffix)
    write_set(tmp_path, "t10k", 10, suffix=suffix)

    train, test = digits.load_digits(tmp_path)

    assert train.images.shape == (20, 1, 4, 6)
    assert test.images.shape == (10, 1, 4, 6)
    assert train.labels.tolist() == train.images[:, 0, 0, 0].tolist() == list(range(20))


@pytest.mark.parametrize("prefix", ["train", "t10k"])
def test_one_set_alone_is_split_the_same_way_every_time(
    digits: ModuleType, tmp_path: Path, prefix: str
) -> None:
    write_set(tmp_path, prefix, 50)

    train, test = digits.load_digits(tmp_path)

    assert sorted(train.labels.tolist() + test.labels.tolist()) == list(range(50))
    assert len(test.labels) == 10
    assert test.images[:, 0, 0, 0].tolist() == test.labels.tolist()
    assert digits.load_digits(tmp_path)[1].labels.tolist() == test.labels.tolist()


def test_ranks_share_an_epoch_equally_and_without_overlap(
    digits: ModuleType, tmp_path: Path
) -> None:
    write_set(tmp_path, "train", 20)
    write_set(tmp_path, "t10k", 10)
    train, _ = digits.load_digits(tmp_path)

    shares = [train.shuffled_share(rank, 3, seed=1).labels.tolist() for rank in range(3)]

    assert [len(share) for share in shares] == [6, 6, 6]
    assert len({number for share in shares for number in share}) == 18
    assert shares[0] != train.shuffled_share(0, 3, seed=2).labels.tolist()


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_training_goes_on_with_the_batches_that_are_left(
    digits: ModuleType, tmp_path: Path, world_size: int
) -> None:
    write_set(tmp_path, "train", 20)
    write_set(tmp_path, "t10k", 10)
    train, _ = digits.load_digits(tmp_path)
    order = digits.TrainingOrder(
        train, epochs=3, batch_size=4, seed=5, rank=0, world_size=world_size
    )
    batches = [batch.labels.tolist() for batch in order.batches_after(0)]

    assert len(batches) == order.num_steps == 3 * order.steps_per_epoch
    for step in range(order.num_steps + 1):
        left = [batch.labels.tolist() for batch in order.batches_after(step)]
        assert left == batches[step:]
    of_first_epoch = [number for batch in batches[: order.steps_per_epoch] for number in batch]
    assert len(set(of_first_epoch)) == len(of_first_epoch) == 20 // world_size
    assert [order.epoch_of(step) for step in (1, order.steps_per_epoch, order.num_steps)] == [
        1,
        1,
        3,
    ]


def test_a_folder_without_digits_is_named(digits: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"\x89PNG")

    with pytest.raises(FileNotFoundError, match=rf"no train-images.* in {tmp_path}"):
        digits.load_digits(tmp_path)


def test_a_file_that_is_not_idx_is_named(digits: ModuleType, tmp_path: Path) -> None:
    write_set(tmp_path, "train", 2)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"<html>"))

    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz is not an IDX file"):
        digits.load_digits(tmp_path)


def test_images_without_their_labels_are_named(digits: ModuleType, tmp_path: Path) -> None:
    write_set(tmp_path, "train", 3)
    short = struct.pack(">4BI", 0, 0, 8, 1, 2) + bytes(2)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(short))

    with pytest.raises(ValueError, match="3 images, 2 labels"):
        digits.load_digits(tmp_path)

    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"no train-labels\* in"):
        digits.load_digits(tmp_path)
