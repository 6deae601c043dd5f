"""Registering: only what was found is saved, with the fingerprint of what is there."""

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.jobs import COPY_SCRIPT
from trainjob.errors import CorruptData, JobError, SourceError, StoreNotFound
from trainjob.job import TrainingJob
from trainjob.registry.data import DataSource
from trainjob.registry.folder import registry_of_machine
from trainjob.registry.register import register_algorithm, register_dataset, register_model
from trainjob.registry.registry import Registry
from trainjob.source import code_problems, fetch_code
from trainjob.storage.manifest import FileRecord, fingerprint
from trainjob.storage.receipt import Receipt
from trainjob.storage.upload import upload_tree


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path / "registry"))
    return registry_of_machine()


def algorithm_file(folder: Path, **changes: Any) -> Path:
    code = folder / "code"
    code.mkdir(exist_ok=True)
    (code / "train.py").write_text(COPY_SCRIPT)
    data: dict[str, Any] = {
        "description": "Copies a number",
        "algorithm": {"kind": "script", "code": {"url": "code"}, "boot_file": "train.py"},
        "inputs": [{"name": "data_url"}],
        "outputs": [{"name": "train_url"}],
    }
    file = folder / "algorithm.yaml"
    file.write_text(yaml.safe_dump(data | changes))
    return file


def data_folder(folder: Path) -> Path:
    data = folder / "data"
    data.mkdir()
    (data / "value.txt").write_text("21")
    return data


def problems_of_file(registry: Registry, file: Path) -> list[str]:
    with pytest.raises(JobError) as raised:
        register_algorithm(registry, "copy", file, None)
    return [str(problem) for problem in raised.value.problems]


def test_an_algorithm_is_saved_with_the_one_version_of_its_code(registry, tmp_path) -> None:
    file = algorithm_file(tmp_path)

    saved = register_algorithm(registry, "copy", file, None)

    code = saved.definition.code
    assert str(saved) == "copy@1"
    assert code.url == str(tmp_path / "code")
    assert code.expect == fetch_code(code, tmp_path / "fetched", None).fingerprint


def test_a_file_that_is_not_there_is_called_that_of_an_algorithm(registry, tmp_path) -> None:
    [problem] = problems_of_file(registry, tmp_path / "nofile.yaml")

    assert problem == (
        f"algorithm file: asked for the algorithm in '{tmp_path}/nofile.yaml', found no such file; "
        "check the path"
    )


def test_declared_channels_that_the_script_does_not_read_are_warnings(registry, tmp_path) -> None:
    channels = {"inputs": [{"name": "data_url"}, {"name": "ckpt_url"}]}
    said: list[str] = []

    saved = register_algorithm(
        registry, "copy", algorithm_file(tmp_path, **channels), None, warn=said.append
    )
    register_algorithm(registry, "copy", algorithm_file(tmp_path), None, warn=said.append)

    assert saved.inputs is not None
    [warning] = said
    assert warning.startswith("inputs[1].name: asked for '--ckpt_url ")
    assert warning.endswith("[script-undeclared-argument]")


def test_channels_are_declared_beside_the_algorithm(registry, tmp_path) -> None:
    algorithm = {"code": {"url": "code"}, "boot_file": "train.py", "inputs": [{"name": "x"}]}

    assert problems_of_file(registry, algorithm_file(tmp_path, algorithm=algorithm)) == [
        "algorithm.inputs: asked for inputs of the file, found inputs of its algorithm; "
        "write it beside algorithm"
    ]


def test_code_that_changed_since_is_refused_by_the_check_and_the_run(registry, tmp_path) -> None:
    algorithm = register_algorithm(registry, "copy", algorithm_file(tmp_path), None).definition
    (tmp_path / "code" / "train.py").write_text("print('other')")

    [problem] = code_problems(algorithm, None)
    with pytest.raises(SourceError) as raised:
        fetch_code(algorithm.code, tmp_path / "fetched", None)

    assert str(problem) == str(raised.value)
    assert f"with the fingerprint {algorithm.code.expect}, found the fingerprint" in str(problem)
    assert "put the expected code there, or register what is there as a new" in str(problem)
    assert not (tmp_path / "fetched").exists()


def test_a_branch_is_saved_as_its_commit(registry, tmp_path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "train.py").write_text("pass")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(repository)]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    code = {"url": f"git+file://{repository}", "ref": "main"}
    file = algorithm_file(tmp_path, algorithm={"code": code, "boot_file": "train.py"})

    saved = register_algorithm(registry, "copy", file, None)

    assert saved.definition.code.ref == head.stdout.strip()


def test_an_algorithm_whose_boot_file_is_not_there_is_not_saved(registry, tmp_path) -> None:
    algorithm = {"code": {"url": "code"}, "boot_file": "trian.py"}

    found = problems_of_file(registry, algorithm_file(tmp_path, algorithm=algorithm))

    assert len(found) == 1
    assert found[0].startswith("algorithm.boot_file: asked for the boot file 'trian.py'")
    assert registry.survey("algorithm").records == []


def test_code_that_is_not_there_is_not_saved(registry, tmp_path) -> None:
    algorithm = {"code": {"url": "nowhere"}, "boot_file": "train.py"}

    with pytest.raises((SourceError, StoreNotFound), match=f"{tmp_path}/nowhere"):
        register_algorithm(registry, "copy", algorithm_file(tmp_path, algorithm=algorithm), None)

    assert registry.survey("algorithm").records == []


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"description": "x" * 1025}, ["description"]),
        ({"colour": "red"}, ["colour"]),
        ({"inputs": [{"name": "-x"}]}, ["inputs[0].name"]),
        ({"inputs": [{"name": "a", "sources": ["cloud"]}]}, ["inputs[0].sources[0]"]),
        ({"inputs": [{"name": "a"}, {"name": "a"}]}, ["inputs[1].name"]),
        ({"inputs": [{"name": "rank"}], "outputs": [{"name": "world_size"}]},
         ["inputs[0].name", "outputs[0].name"]),
        ({"algorithm": {"code": {"url": "ftp://x"}, "boot_file": "a.py"}}, ["algorithm.code.url"]),
        ({"algorithm": "copy@1"}, ["algorithm"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_file_is_told_by_its_keys(
    registry, tmp_path, changes, fields
) -> None:
    found = problems_of_file(registry, algorithm_file(tmp_path, **changes))

    assert [problem.partition(": ")[0] for problem in found] == fields


def test_a_hyperparameter_without_a_default_is_left_to_the_jobs(registry, tmp_path) -> None:
    rule = {"name": "scale", "type": "Integer", "required": True}
    algorithm = {"code": {"url": "code"}, "boot_file": "train.py", "hyperparameters": [rule]}

    saved = register_algorithm(
        registry, "copy", algorithm_file(tmp_path, algorithm=algorithm), None
    )

    assert saved.definition.hyperparameters[0].required


def test_a_dataset_is_saved_with_the_fingerprint_that_a_run_compares(registry, tmp_path) -> None:
    data = data_folder(tmp_path)

    saved = register_dataset(registry, "numbers", DataSource(str(data)), None, is_split=False)

    file = FileRecord("value.txt", 2, hashlib.sha256(b"21").hexdigest())
    assert (saved.num_files, saved.size_bytes, saved.is_read) == (1, 2, True)
    assert saved.fingerprint == fingerprint([file])
    assert saved.is_split is False


def test_an_archive_has_the_fingerprint_of_the_files_in_it(registry, tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("value.txt", "21")

    zipped = register_dataset(registry, "a", DataSource(str(tmp_path / "data.zip")), None)
    plain = register_dataset(registry, "b", DataSource(str(data_folder(tmp_path))), None)

    assert zipped.fingerprint == plain.fingerprint


def test_data_whose_fingerprint_is_known_is_not_read(registry, tmp_path) -> None:
    known = "sha256:" + "0" * 64
    source = DataSource(str(data_folder(tmp_path)), expect=known)

    saved = register_dataset(registry, "numbers", source, None)

    assert (saved.fingerprint, saved.is_read, saved.num_files) == (known, False, None)


@pytest.mark.parametrize("expect", [None, "sha256:" + "0" * 64])
def test_data_that_is_not_there_is_not_saved(registry, tmp_path, expect) -> None:
    with pytest.raises(StoreNotFound):
        register_dataset(registry, "numbers", DataSource(f"{tmp_path}/no", expect=expect), None)

    assert registry.survey("dataset").records == []


@pytest.mark.parametrize(
    ("source", "field"),
    [
        (DataSource("https://name:secret@host/data"), "url"),
        (DataSource("", ), "url"),
        (DataSource("/data", expect="md5:1"), "expect"),
        (DataSource("/data", archive_names="ebcdic"), "archive_names"),
    ],
)  # fmt: skip
def test_a_dataset_that_no_job_could_have_is_refused(registry, source, field) -> None:
    with pytest.raises(JobError) as raised:
        register_dataset(registry, "numbers", source, None)

    assert [problem.field for problem in raised.value.problems] == [field]
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("name", ["CarbonData", "carbon_data", "Carbon Data"])
def test_carbondata_is_refused_with_what_to_do(registry, tmp_path, name) -> None:
    source = DataSource(str(data_folder(tmp_path)))
    file = algorithm_file(tmp_path, inputs=[{"name": "data_url", "format": name}])
    told = (
        "format: asked for a format that is read here (CarbonData: export it to files such as "
        f"Parquet or CSV), found {name!r}; change it"
    )

    with pytest.raises(JobError) as raised:
        register_dataset(registry, "numbers", source, None, format=name)

    assert [str(problem) for problem in raised.value.problems] == [told]
    assert problems_of_file(registry, file) == [f"inputs[0].{told}"]


def test_a_folder_of_carbondata_is_refused_with_what_to_do(registry, tmp_path) -> None:
    data = data_folder(tmp_path)
    (data / "part-0.carbondata").write_bytes(b"x")

    with pytest.raises(JobError) as raised:
        register_dataset(registry, "numbers", DataSource(str(data)), None)

    assert [str(problem) for problem in raised.value.problems] == [
        f"url: asked for data that is read here at {str(data)!r}, found CarbonData: "
        "'part-0.carbondata'; export it from CarbonData to files such as Parquet or CSV, and "
        "register these"
    ]
    assert registry.survey("dataset").records == []


def output_of_run(folder: Path, **changes: Any) -> Receipt:
    """Leave what a run leaves at ``out``."""
    source = folder / "written"
    source.mkdir()
    (source / "model.pt").write_bytes(b"weights")
    facts: dict[str, Any] = {
        "job": {"name": "copy"},
        "used": ["algorithm copy@1", "dataset numbers@2"],
        "metrics": {"accuracy": 0.97},
    }
    values: dict[str, Any] = {"run_id": "run-1", "label": "train_url", "facts": facts}
    return upload_tree(source, str(folder / "out"), None, **values | changes)


def test_a_model_knows_the_run_that_made_it(registry, tmp_path) -> None:
    output_of_run(tmp_path)

    saved = register_model(registry, "net", DataSource(str(tmp_path / "out")), None, "Better")

    assert saved.metrics == {"accuracy": 0.97}
    assert saved.run is not None
    assert (saved.run.run_id, saved.run.job, saved.run.state) == ("run-1", "copy", "Completed")
    assert saved.made_from == ("algorithm copy@1", "dataset numbers@2")
    job: dict[str, Any] = {"name": "x", "algorithm": {"code": {"url": "c"}, "boot_file": "t.py"}}
    job |= {"inputs": [{"name": "ckpt_url", "model": "net@1"}]}
    assert TrainingJob.parse(job).inputs[0].expect == saved.fingerprint


def test_the_output_of_a_run_that_failed_is_no_model(registry, tmp_path) -> None:
    output_of_run(tmp_path, state="Failed")

    with pytest.raises(JobError, match=r"found what run run-1 left, which ended Failed; register"):
        register_model(registry, "net", DataSource(str(tmp_path / "out")), None)


def test_files_that_changed_since_the_run_are_no_model(registry, tmp_path) -> None:
    output_of_run(tmp_path)
    (tmp_path / "out" / "model.pt").write_bytes(b"Weights")

    with pytest.raises(CorruptData, match=r"not what its receipt says: model\.pt"):
        register_model(registry, "net", DataSource(str(tmp_path / "out")), None)


def test_a_model_is_imported_from_a_folder_without_a_run(registry, tmp_path) -> None:
    saved = register_model(registry, "net", DataSource(str(data_folder(tmp_path))), None)

    assert (saved.run, saved.metrics) == (None, {})


def test_a_dataset_of_a_store_is_the_one_that_a_job_stages(registry, tmp_path, s3) -> None:
    bucket = s3.new_bucket()
    s3.put(bucket, "numbers/value.txt", b"21")
    source = DataSource(f"s3://{bucket}/numbers/")

    stored = register_dataset(registry, "numbers", source, s3.settings)
    local = register_dataset(registry, "numbers", DataSource(str(data_folder(tmp_path))), None)

    assert stored.fingerprint == local.fingerprint
    assert [str(version) for version in registry.survey("dataset", "numbers").records] == [
        "numbers@1",
        "numbers@2",
    ]
