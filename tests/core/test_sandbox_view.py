"""What of a run its ranks see in a sandbox, and how: pure values, without a machine."""

from pathlib import Path
from typing import Any

import pytest

from tests.jobs import make_job
from trainjob.job import TrainingJob
from trainjob.plan import launch_of, program_of
from trainjob.workspace import Workspace


def shown(folder: Path, **changes: Any) -> dict[str, tuple[str, str]]:
    """Return source and way of every mount by its target, in a run of such a job."""
    job = TrainingJob.parse(make_job(folder, **changes))
    workspace = Workspace(folder / "run")
    launch = launch_of(job, workspace, program_of(job, workspace), run_id="run", attempt=1)
    return {
        mount.target: (str(mount.source), "read" if mount.is_read_only else "write")
        for mount in launch.mounts
    }


def test_without_a_sandbox_nothing_is_mounted(tmp_path: Path) -> None:
    assert shown(tmp_path) == {}


def test_the_run_is_at_its_own_paths_with_its_own_tmp_and_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/worker/")
    run = str(tmp_path / "run")

    assert shown(tmp_path, sandbox=True) == {
        "/tmp": (f"{run}/private/tmp", "write"),
        "/home/worker": (f"{run}/private/home", "write"),
        f"{run}/code": (f"{run}/code", "read"),
        f"{run}/params.json": (f"{run}/params.json", "read"),
        f"{run}/inputs/data_url": (f"{run}/inputs/data_url", "read"),
        f"{run}/checkpoints": (f"{run}/checkpoints", "write"),
        f"{run}/logs/attempt-1": (f"{run}/logs/attempt-1", "write"),
        f"{run}/outputs/train_url": (f"{run}/outputs/train_url", "write"),
    }


def test_a_copy_may_be_written_and_a_stream_is_no_folder(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    inputs = [
        {"name": "own", "url": data, "mode": "copy"},
        {"name": "remote", "url": "https://example.org/data/", "mode": "stream"},
    ]

    seen = shown(tmp_path, sandbox=True, inputs=inputs)

    assert seen[f"{tmp_path}/run/inputs/own"][1] == "write"
    assert not [target for target in seen if "remote" in target or "example" in target]


def test_a_file_that_is_used_where_it_lies_is_shown_there(tmp_path: Path) -> None:
    """The folder of its channel has a link to it; nothing beside it is shown."""
    file, folder = tmp_path / "data.parquet", tmp_path / "run" / "inputs" / "one"
    file.write_bytes(b"rows")
    folder.mkdir(parents=True)
    (folder / "data.parquet").symlink_to(file)
    asked: dict[str, Any] = {"sandbox": True, "inputs": [{"name": "one", "url": f"file://{file}"}]}

    assert shown(tmp_path, **asked)[str(file)] == (str(file), "read")

    file.unlink()
    assert str(file) not in shown(tmp_path, **asked)


def test_the_code_of_a_profile_is_to_read_only(tmp_path: Path) -> None:
    code = "/home/ma-user/modelarts/user-job-dir/code"
    asked: dict[str, Any] = {"profile": "modelarts", "outputs": []}

    assert shown(tmp_path, **asked)[code] == (f"{tmp_path}/run/code", "write")
    assert shown(tmp_path, **asked, sandbox=True)[code] == (f"{tmp_path}/run/code", "read")


@pytest.mark.parametrize("home", ["", "/", "relative"])
def test_a_home_that_is_no_folder_of_its_own_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("HOME", home)

    targets = set(shown(tmp_path, sandbox=True))

    assert not targets & {"", "/", "relative"}
