"""Whether a machine has the newest checkpoints of a run that was on another one, too."""

from pathlib import Path

import pytest

from trainjob.errors import CheckpointsOfAnother
from trainjob.storage.checkpoint_mirror import CheckpointMirror
from trainjob.storage.checkpoint_restore import restore_checkpoints, went_on_elsewhere


class Machine:
    """A machine with a checkpoint folder of a run and its journal."""

    def __init__(self, folder: Path, url: str, run_id: str = "run-1") -> None:
        self.folder = folder / "checkpoints"
        self.folder.mkdir(parents=True)
        self.journal = folder / "journal.json"
        self.url = url
        self.run_id = run_id

    def save(self, name: str) -> None:
        (self.folder / name).write_text(name)
        mirror = CheckpointMirror(
            self.folder, self.url, None, job="job", run_id=self.run_id, journal=self.journal
        )
        mirror.push(is_final=True)

    def restore(self) -> None:
        restore_checkpoints(
            self.url, self.folder, None, job="job", run_id=self.run_id, journal=self.journal
        )

    def is_behind(self) -> bool:
        return went_on_elsewhere(
            self.url, None, job="job", run_id=self.run_id, journal=self.journal
        )


def test_a_machine_that_saved_last_is_not_behind(tmp_path: Path) -> None:
    first = Machine(tmp_path / "first", str(tmp_path / "store"))

    assert not first.is_behind()
    first.save("a.pt")
    assert not first.is_behind()


def test_a_machine_is_behind_after_the_run_was_on_another(tmp_path: Path) -> None:
    first = Machine(tmp_path / "first", str(tmp_path / "store"))
    first.save("a.pt")
    second = Machine(tmp_path / "second", str(tmp_path / "store"))

    assert second.is_behind()
    second.restore()
    assert not second.is_behind()
    second.save("b.pt")

    assert first.is_behind()


def test_checkpoints_that_another_run_took_over_are_not_taken_back(tmp_path: Path) -> None:
    first = Machine(tmp_path / "first", str(tmp_path / "store"))
    first.save("a.pt")
    Machine(tmp_path / "other", str(tmp_path / "store"), run_id="run-2").restore()

    with pytest.raises(CheckpointsOfAnother, match="run-2"):
        first.is_behind()
