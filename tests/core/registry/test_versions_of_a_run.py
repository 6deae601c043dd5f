"""A run stays with the saved versions that it began with."""

from pathlib import Path
from typing import Any

import pytest

from trainjob.errors import JobError
from trainjob.job import TrainingJob
from trainjob.registry.folder import registry_of_machine
from trainjob.registry.records import SavedDataset
from trainjob.registry.registry import Registry
from trainjob.report import report_markdown
from trainjob.run_record import RunRecord

JOB: dict[str, Any] = {
    "name": "digits",
    "algorithm": {"code": {"url": "/c"}, "boot_file": "t.py"},
    "inputs": [{"name": "data_url", "dataset": "digits"}],
}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path / "registry"))
    return registry_of_machine()


def register(registry: Registry) -> None:
    fingerprint = "sha256:" + "0" * 64
    values = {"url": "/data", "fingerprint": fingerprint, "is_read": True, "created": "now"}
    registry.add(SavedDataset(name="digits", version=1, **values))


def begun(job: dict[str, Any] = JOB) -> RunRecord:
    """Return the record of a process of the run that has read its job."""
    record = RunRecord("run-1", "digits")
    record.workspace.root.mkdir(parents=True, exist_ok=True)
    record.job = record.read_job(job, "job")
    record.keep_job()
    return record


def test_a_restart_uses_the_version_that_the_run_began_with(registry) -> None:
    register(registry)
    first = begun()
    register(registry)

    second = begun()

    assert second.job == first.job
    assert second.report("Completed", None).used == ("dataset digits@1",)
    assert RunRecord("run-2", "digits").read_job(JOB, "job").saved_versions == ["dataset digits@2"]


def test_a_run_whose_kept_job_a_power_cut_has_emptied_keeps_it_again(registry) -> None:
    register(registry)
    first = begun()
    (first.workspace.root / "job.json").write_bytes(b"")

    second = begun()
    register(registry)

    assert begun().job == second.job == first.job


def test_a_restart_costs_what_the_run_began_with(registry, tmp_path: Path) -> None:
    job = JOB | {"inputs": [], "resources": {"flavor": "2c4g"}}
    flavors = tmp_path / "registry" / "flavors.yaml"
    flavors.parent.mkdir()
    flavors.write_text("2c4g: {price_per_hour: 1}")
    first = begun(job)
    flavors.write_text("2c4g: {price_per_hour: 9}")

    second = begun(job)

    assert second.job == first.job
    assert second.job
    assert second.job.resources.flavor
    assert second.job.resources.flavor.price_per_hour == 1


def test_a_job_without_saved_versions_is_not_kept() -> None:
    record = RunRecord("run-1", "digits", TrainingJob.parse(JOB | {"inputs": []}))
    record.workspace.root.mkdir(parents=True)

    record.keep_job()

    assert list(record.workspace.root.iterdir()) == []


def test_a_version_that_is_not_there_fails_the_run_with_its_message(registry) -> None:
    with pytest.raises(JobError, match="asked for the saved dataset 'digits@latest', found no"):
        begun()


def test_the_page_and_the_receipt_of_a_run_name_its_versions(registry) -> None:
    register(registry)
    record = begun()

    page = report_markdown(record.report("Completed", None), record.job)

    assert "| saved versions | `dataset digits@1` |" in page
    assert record.receipt_facts("Completed")["used"] == ["dataset digits@1"]
