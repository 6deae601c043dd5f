"""``python -m flows algorithm | dataset | model | upload``, as a person types them."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from prefect.artifacts import Artifact

from flows.__main__ import main
from flows.training_job import training_job
from tasks.artifacts import artifact_key
from tests.jobs import COPY_SCRIPT
from trainjob.storage.receipt import verify_receipt

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry, and a folder of data beside it."""
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path / "registry"))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "value.txt").write_text("21")
    return folder


def job_of(folder: Path, **changes: Any) -> Path:
    """Register an algorithm and a dataset by their commands; return a job file on them."""
    (folder / "code").mkdir()
    (folder / "code" / "train.py").write_text(COPY_SCRIPT)
    algorithm: dict[str, Any] = {
        "algorithm": {"code": {"url": "code"}, "boot_file": "train.py"},
        "inputs": [{"name": "data_url"}],
        "outputs": [{"name": "train_url"}],
    }
    (folder / "algorithm.yaml").write_text(yaml.safe_dump(algorithm))
    assert main(["algorithm", "register", "copy", str(folder / "algorithm.yaml")]) == 0
    assert main(["dataset", "register", "numbers", str(folder / "data")]) == 0
    job = {
        "name": "copy",
        "algorithm": "copy",
        "inputs": [{"name": "data_url", "dataset": "numbers"}],
        "outputs": [{"name": "train_url", "url": "out"}],
    }
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job | changes))
    return file


def test_a_dataset_is_registered_listed_shown_and_deleted(data, tmp_path, capsys) -> None:
    assert main(["dataset", "register", "numbers", str(data), "--description", "A number"]) == 0
    assert (
        main(["dataset", "register", "numbers", str(data), "--no-split", "--format", "text"]) == 0
    )
    assert capsys.readouterr().out == (
        f"saved the dataset numbers@1: 1 file, 2 B, {data}\n"
        f"saved the dataset numbers@2: 1 file, 2 B, {data}\n"
    )

    assert main(["dataset", "list"]) == 0
    head, row, total = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "SAVED", "WHAT", "WHERE", "DESCRIPTION"]
    assert row.startswith("numbers@2  2")
    assert total == f"1 dataset in {tmp_path / 'registry'}"
    assert main(["dataset", "list", "numbers"]) == 0
    assert capsys.readouterr().out.endswith(f"\n2 versions in {tmp_path / 'registry'}\n")

    assert main(["dataset", "show", "numbers"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["version"], shown["format"], shown["is_split"]) == (2, "text", False)

    assert main(["dataset", "delete", "numbers@2"]) == 0
    assert main(["dataset", "show", "numbers", "--json"]) == 0
    deleted, shown = capsys.readouterr().out.split("\n", 1)
    assert deleted == "deleted the dataset numbers@2; its number is not given again"
    assert json.loads(shown)["description"] == "A number"


def test_what_is_not_there_is_told_with_exit_code_1(data, capsys) -> None:
    assert main(["dataset", "register", "numbers", str(data)]) == 0

    assert main(["dataset", "show", "numbers@2"]) == 1
    assert main(["dataset", "list", "letters"]) == 1
    assert main(["model", "delete", "net@1"]) == 1

    errors = capsys.readouterr().err.splitlines()
    assert "'numbers@2', found only numbers@1; name one of these" in errors[0]
    assert "'letters@latest', found only numbers in" in errors[1]
    assert "'net@1', found no saved model in" in errors[2]


@pytest.mark.parametrize("reference", ["numbers", "numbers@latest"])
def test_deleting_needs_the_number_of_a_version(data, capsys, reference) -> None:
    main(["dataset", "register", "numbers", str(data)])

    assert main(["dataset", "delete", reference]) == 1

    assert "name the version to delete, such as numbers@1" in capsys.readouterr().err
    assert main(["dataset", "show", "numbers@1"]) == 0


def test_an_empty_registry_lists_nothing(tmp_path, capsys) -> None:
    assert main(["model", "list"]) == 0

    assert capsys.readouterr().out == f"0 models in {tmp_path / 'registry'}\n"
    assert not (tmp_path / "registry").exists()


def test_a_job_with_a_version_that_is_not_there_ends_with_2(tmp_path, capsys) -> None:
    inputs = [{"name": "data_url", "dataset": "numbers@2"}]
    file = job_of(tmp_path, inputs=inputs, algorithm="copie")
    capsys.readouterr()

    assert main(["check", str(file)]) == 2

    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{file}: 2 problems"
    assert "'copie@latest', found only copy in" in lines[1]
    assert "'numbers@2', found only numbers@1" in lines[2]


def test_the_plan_of_a_job_names_the_versions(tmp_path, capsys) -> None:
    file = job_of(tmp_path)
    capsys.readouterr()

    assert main(["check", str(file)]) == 0

    assert "\n  uses    algorithm copy@1, dataset numbers@1\n" in capsys.readouterr().out


def test_a_run_for_machines_names_its_versions_and_its_output_becomes_a_model(
    tmp_path, capsys, prefect_server
) -> None:
    # In a process of its own: the command changes what signals do to its process.
    command = [sys.executable, "-m", "flows", "run", str(job_of(tmp_path)), "--json"]
    env = os.environ | {"PREFECT_API_URL": prefect_server}
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stderr
    versions = ["algorithm copy@1", "dataset numbers@1"]
    report = json.loads(ran.stdout)
    assert report["used"] == versions
    assert (report["state"], report["exit_code"]) == ("Completed", 0)
    assert report["outputs"][0]["url"] == str(tmp_path / "out")
    assert "[1/5] stage_inputs" in ran.stderr
    assert f"uses   {', '.join(versions)}" in ran.stderr
    capsys.readouterr()
    assert main(["model", "register", "net", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(["model", "show", "net", "--json"]) == 0
    run = json.loads(capsys.readouterr().out)["run"]
    assert (run["run_id"], run["used"]) == (report["run_id"], versions)


def test_a_run_of_the_form_names_its_versions_on_its_page(tmp_path, prefect_server) -> None:
    job = yaml.safe_load(job_of(tmp_path).read_text())
    job["outputs"] = [{"name": "train_url", "url": str(tmp_path / "out")}]

    state = training_job(job, return_state=True)

    assert state.is_completed(), state.message
    page = str(cast(Artifact, Artifact.get(key=artifact_key("copy"))).data)
    assert "| saved versions | `algorithm copy@1`, `dataset numbers@1` |" in page


def test_what_a_model_was_made_from_is_deleted_by_force_only(data, tmp_path, capsys) -> None:
    main(["dataset", "register", "numbers", str(data)])
    model = tmp_path / "registry" / "model" / "net" / "1.yaml"
    model.parent.mkdir(parents=True)
    record = yaml.safe_load((tmp_path / "registry/dataset/numbers/1.yaml").read_text())
    for key in ("labelling", "format", "is_split", "values_sha256"):
        del record[key]
    run = {"run_id": "r", "state": "Completed", "used": ["dataset numbers@1"]}
    model.write_text(yaml.safe_dump(record | {"kind": "model", "name": "net", "run": run}))

    assert main(["dataset", "delete", "numbers@1"]) == 1
    assert capsys.readouterr().err == (
        "asked for the dataset 'numbers@1' to be deleted, found model net@1, made from it; "
        "delete these first, or give --force\n"
    )
    assert main(["dataset", "show", "numbers@1"]) == 0

    assert main(["dataset", "delete", "numbers@1", "--force"]) == 0
    assert main(["dataset", "show", "numbers@1"]) == 1


def test_upload_brings_a_folder_with_its_receipt(data, tmp_path, capsys) -> None:
    assert main(["upload", str(data), str(tmp_path / "store")]) == 0

    assert capsys.readouterr().out == f"uploaded 1 file, 2 B to {tmp_path}/store, verified\n"
    assert (tmp_path / "store" / "value.txt").read_text() == "21"
    assert verify_receipt(str(tmp_path / "store"), None).problems == ()


def test_upload_may_be_repeated_and_replaces_nothing_else(data, tmp_path, capsys) -> None:
    words = ["upload", str(data), str(tmp_path / "store")]
    assert main(words) == 0
    assert main(words) == 0
    (data / "value.txt").write_text("22")

    assert main(words) == 1

    assert f"{tmp_path}/store" in capsys.readouterr().err
    assert (tmp_path / "store" / "value.txt").read_text() == "21"


def test_upload_takes_a_folder_to_an_object_store(data, s3, capsys, monkeypatch) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{s3.new_bucket()}/numbers/"

    assert main(["upload", str(data), url, "--json"]) == 0
    assert main(["dataset", "register", "numbers", url]) == 0

    uploaded, registered = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert json.loads(uploaded) == {"url": url, "num_files": 1, "size_bytes": 2}
    assert registered.startswith("saved the dataset numbers@1: ")


@pytest.mark.parametrize("name", ["nowhere", "data/value.txt"])
def test_upload_of_what_is_no_folder_is_refused(tmp_path, capsys, name) -> None:
    assert main(["upload", str(tmp_path / name), str(tmp_path / "store")]) == 1

    do = "no such folder; give the folder that holds the files"
    assert capsys.readouterr().err == f"{tmp_path / name}: {do}\n"
    assert not (tmp_path / "store").exists()


def test_upload_takes_the_folder_that_a_link_means(data, tmp_path, capsys) -> None:
    (tmp_path / "link").symlink_to(data)

    assert main(["upload", str(tmp_path / "link"), str(tmp_path / "store")]) == 0

    assert (tmp_path / "store" / "value.txt").read_text() == "21"


def test_upload_of_a_link_to_itself_is_refused_by_name(data, tmp_path, capsys) -> None:
    (data / "loop").symlink_to("loop")

    assert main(["upload", str(data), str(tmp_path / "store")]) == 1

    assert f"{data}: 'loop' is a link that leads to nothing; " in capsys.readouterr().err


def test_upload_of_a_folder_that_may_not_be_read_is_refused_by_name(data, tmp_path, capsys) -> None:
    (data / "vault").mkdir(0)
    if os.access(data / "vault", os.R_OK):
        pytest.skip("nothing is hidden from this user")

    assert main(["upload", str(data), str(tmp_path / "store")]) == 1

    assert f"{data}/vault: permission denied; " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["upload", "data"], ["verify"]])
def test_a_url_that_lacks_a_slash_is_no_folder(data, tmp_path, capsys, monkeypatch, words) -> None:
    monkeypatch.chdir(tmp_path)

    assert main([*words, "s3:/bucket/numbers/"]) == 1

    assert "s3:/bucket/numbers/: one slash behind the colon" in capsys.readouterr().err
    assert not (tmp_path / "s3:").exists()


def test_upload_of_an_empty_folder_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()

    assert main(["upload", str(tmp_path / "empty"), str(tmp_path / "store")]) == 1

    assert "/empty: no file in it; give the folder" in capsys.readouterr().err


def test_a_list_shows_one_clean_line_a_version(data, capsys) -> None:
    words = ["dataset", "register", "numbers", str(data), "--description"]
    assert main([*words, "two\nlines\x1b[31m"]) == 0
    assert main([*words, "red\x1b[31m"]) == 0
    capsys.readouterr()

    assert main(["dataset", "list", "numbers"]) == 0

    first, second = capsys.readouterr().out.splitlines()[1:-1]
    assert first.endswith("  two ...")
    assert second.endswith("  red\\x1b[31m")


def test_a_list_goes_on_after_a_broken_version_and_names_it(data, tmp_path, capsys) -> None:
    for name in ("letters", "numbers", "numbers"):
        assert main(["dataset", "register", name, str(data)]) == 0
    (tmp_path / "registry" / "dataset" / "numbers" / "2.yaml").write_text("")
    capsys.readouterr()

    assert main(["dataset", "list"]) == 0
    everything = capsys.readouterr().out
    assert main(["dataset", "list", "numbers"]) == 0
    of_name = capsys.readouterr().out

    assert "letters@1" in everything
    assert "numbers@1" in of_name
    for text in (everything, of_name):
        assert "asked for the saved dataset numbers@2" in text
    assert main(["dataset", "show", "numbers@1"]) == 0


def test_a_broken_version_is_deleted_by_force_and_its_number_is_not_given_again(
    data, tmp_path, capsys
) -> None:
    assert main(["dataset", "register", "numbers", str(data)]) == 0
    (tmp_path / "registry" / "dataset" / "numbers" / "1.yaml").write_text("x: [")
    capsys.readouterr()

    assert main(["dataset", "delete", "numbers@1"]) == 1
    assert "or `python -m flows dataset delete numbers@1 --force`" in capsys.readouterr().err
    assert main(["dataset", "delete", "numbers@1", "--force"]) == 0

    assert main(["dataset", "delete", "numbers@1", "--force"]) == 1
    assert main(["dataset", "register", "numbers", str(data)]) == 0
    assert "saved the dataset numbers@2" in capsys.readouterr().out


def test_show_says_what_is_in_a_dataset_and_lists_its_files(data, capsys) -> None:
    for path in ("train/cat/1.png", "train/dog/1.png", "val/cat/1.png"):
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (data / path).write_text(path)
    assert main(["dataset", "register", "numbers", str(data)]) == 0
    capsys.readouterr()

    assert main(["dataset", "show", "numbers"]) == 0
    contents = yaml.safe_load(capsys.readouterr().out)["contents"]
    assert main(["dataset", "show", "numbers", "--files"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["dataset", "show", "numbers", "--files", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]

    assert contents["endings"][".png"] == {"num_files": 3, "size_bytes": 43}
    assert contents["splits"] == {"train": 2, "val": 1}
    assert contents["classes"] == {"cat": 2, "dog": 1}
    assert [line.split()[-1] for line in lines[:-1]] == [file["path"] for file in files]
    assert files[-1]["path"] == "value.txt"
    assert files[-1]["sha256"] == hashlib.sha256(b"21").hexdigest()
    assert lines[-1] == "4 files, 45 B"


def test_nothing_that_would_change_the_terminal_is_printed(tmp_path, capsys) -> None:
    data = tmp_path / "red\x1b[31m\x9b"
    data.mkdir()
    (data / "a\x1b[2J.txt").write_text("")

    assert main(["dataset", "register", "red", str(data)]) == 0
    assert main(["dataset", "show", "red"]) == 0
    assert main(["dataset", "show", "red", "--files"]) == 0
    assert main(["dataset", "register", "red", f"{data}/none\x1b[31m"]) == 1

    out, err = capsys.readouterr()
    assert not {"\x1b", "\x9b"} & set(out + err)
    assert "red\\x1b[31m\\x9b" in out
    assert "none\\x1b[31m" in err


@pytest.mark.parametrize(
    ("option", "text"), [("--labelling", "a\nb"), ("--format", ""), ("--description", "\udcff")]
)
def test_a_fact_that_cannot_be_saved_is_told(data, capsys, option, text) -> None:
    assert main(["dataset", "register", "numbers", str(data), option, text]) == 2

    assert f"  {option[2:]}: asked for " in capsys.readouterr().err


def test_a_model_that_cannot_be_read_keeps_a_version_from_deletion(data, tmp_path, capsys) -> None:
    main(["dataset", "register", "numbers", str(data)])
    model = tmp_path / "registry" / "model" / "net" / "1.yaml"
    model.parent.mkdir(parents=True)
    model.write_text("")

    assert main(["dataset", "delete", "numbers@1"]) == 1

    assert "perhaps made from it: asked for the saved model net@1" in capsys.readouterr().err
    assert main(["dataset", "show", "numbers@1"]) == 0
    assert main(["dataset", "delete", "numbers@1", "--force"]) == 0
