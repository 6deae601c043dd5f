"""The folders of a run: derived from its id, and nothing lost between attempts."""

from pathlib import Path

import pytest

from trainjob.workspace import Workspace


def test_a_run_has_the_same_workspace_every_time(tmp_path: Path) -> None:
    assert Workspace.of_run("r1") == Workspace(tmp_path / "runs" / "r1")


def test_workspaces_are_in_the_home_folder_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRAINJOB_WORKDIR")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert Workspace.of_run("r1").root == tmp_path / ".trainjob" / "runs" / "r1"


def test_each_attempt_has_its_own_logs_and_starts_with_empty_outputs(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    first = workspace.start_attempt(("train_url",))
    (workspace.output_dir("train_url") / "half.pt").write_text("half")

    second = workspace.start_attempt(("train_url",))

    assert (first, second) == (0, 1)
    assert workspace.attempt_logs(0).is_dir()
    assert workspace.attempt_logs(1).is_dir()
    assert list(workspace.output_dir("train_url").iterdir()) == []
    kept = tmp_path / "previous" / "attempt-0" / "train_url" / "half.pt"
    assert kept.read_text() == "half"


def test_an_attempt_that_goes_on_from_a_checkpoint_keeps_the_outputs(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.start_attempt(("train_url",))
    (workspace.output_dir("train_url") / "best.pt").write_text("best")

    workspace.start_attempt(("train_url",), keeps_outputs=True)

    assert (workspace.output_dir("train_url") / "best.pt").read_text() == "best"


def test_attempts_are_counted_on_over_machines(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)

    numbers = [workspace.start_attempt((), at_least=3) for _ in range(2)]

    assert numbers == [3, 4]


@pytest.mark.parametrize("keeps_checkpoints", [True, False])
def test_dropping_copies_keeps_logs_and_parameters(tmp_path: Path, keeps_checkpoints: bool) -> None:
    workspace = Workspace(tmp_path)
    workspace.start_attempt(("train_url",))
    workspace.input_dir("data_url").mkdir(parents=True)
    workspace.params_file.write_text("{}")

    workspace.drop_copies(keeps_checkpoints=keeps_checkpoints)

    kept = ["checkpoints"] if keeps_checkpoints else []
    assert sorted(p.name for p in tmp_path.iterdir()) == [*kept, "logs", "params.json"]
