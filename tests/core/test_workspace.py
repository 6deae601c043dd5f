"""The folders of a run: derived from its id, and nothing lost between attempts."""

import shutil
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


def test_outputs_that_are_there_before_the_first_attempt_are_set_aside_too(tmp_path: Path) -> None:
    """They came from another machine, of whose attempts nothing else is known."""
    workspace = Workspace(tmp_path)
    for content in ("elsewhere", "first", "second"):
        workspace.output_dir("train_url").mkdir(parents=True, exist_ok=True)
        (workspace.output_dir("train_url") / "model.pt").write_text(content)
        workspace.start_attempt(("train_url",))

    earlier = workspace.earlier_output_dirs("train_url")

    assert list(workspace.output_dir("train_url").iterdir()) == []
    assert [(folder / "model.pt").read_text() for folder in earlier] == [
        "second",
        "first",
        "elsewhere",
    ]


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


def test_checkpoints_that_stay_keep_what_tells_what_of_them_was_sent(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.start_attempt(("train_url",))
    journals = [workspace.journal(name) for name in ("checkpoints", "output-train_url")]
    for journal in journals:
        journal.parent.mkdir(exist_ok=True)
        journal.write_text("{}")

    workspace.drop_copies(keeps_checkpoints=True)

    assert [journal.exists() for journal in journals] == [True, False]


def test_outputs_are_out_of_sight_at_once_when_copies_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed meanwhile leaves none that looks whole and is not."""
    workspace = Workspace(tmp_path)
    workspace.start_attempt(("train_url",))
    removed: list[Path] = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: removed.append(path))

    workspace.drop_copies(keeps_checkpoints=False)

    assert not workspace.outputs.exists()
    [dropped] = [path for path in removed if (path / "train_url").exists()]
    monkeypatch.undo()
    workspace.drop_copies(keeps_checkpoints=False)
    assert not dropped.exists()


def test_an_environment_that_is_no_link_any_more_does_not_end_the_dropping(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    (workspace.environment / "of the script").mkdir(parents=True)
    workspace.outputs.mkdir()

    workspace.drop_copies(keeps_checkpoints=False)

    assert [path.name for path in tmp_path.iterdir()] == ["environment"]
