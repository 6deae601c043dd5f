"""Channels that are one archive, from the keys of the job to what the script finds."""

import json
from pathlib import Path

import pytest

from flows.training_job import training_job
from tests.core.storage.archives import archive_of, zip_with_names
from tests.jobs import make_job
from trainjob.job import TrainingJob

pytestmark = pytest.mark.usefixtures("prefect_server")

SCRIPT = """\
import argparse, json, pathlib
parser = argparse.ArgumentParser()
for name in ("--other", "--kept", "--train_url"):
    parser.add_argument(name, type=pathlib.Path)
args = parser.parse_args()
found = {
    folder.name: sorted(str(file.relative_to(folder)) for file in folder.rglob("*.*"))
    for folder in (args.other, args.kept)
}
(args.train_url / "found.json").write_text(json.dumps(found))
"""


def job_with(folder: Path, inputs: list[dict[str, str]]) -> TrainingJob:
    job = make_job(folder, SCRIPT, inputs=inputs)
    del job["hyperparameters"]
    return TrainingJob.parse(job)


def test_an_archive_is_unpacked_with_its_names_unless_it_is_to_be_kept(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    archive_of(tmp_path / "kept" / "data.tar.zst", {"a.png": b"1"})
    zip_with_names(tmp_path / "windows.zip", ["图像/猫.png".encode("gbk")])
    inputs = [
        {"name": "other", "url": str(tmp_path / "windows.zip"), "archive_names": "gbk"},
        {"name": "kept", "url": str(tmp_path / "kept"), "unpack": "never"},
    ]

    report = training_job(job_with(tmp_path, inputs))

    assert report.state == "Completed"
    found = json.loads((tmp_path / "out" / "found.json").read_text())
    assert found == {"other": ["图像/猫.png"], "kept": ["data.tar.zst"]}


def test_a_url_of_one_file_is_a_folder_with_this_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    archive_of(tmp_path / "data" / "kept.zip", {"a.png": b"1"})
    (tmp_path / "data" / "train.parquet").write_bytes(b"rows")
    inputs = [
        {"name": "kept", "url": str(tmp_path / "data" / "kept.zip"), "unpack": "never"},
        {"name": "other", "url": str(tmp_path / "data" / "train.parquet")},
    ]

    report = training_job(job_with(tmp_path, inputs))

    assert report.state == "Completed"
    found = json.loads((tmp_path / "out" / "found.json").read_text())
    assert found == {"kept": ["kept.zip"], "other": ["train.parquet"]}
