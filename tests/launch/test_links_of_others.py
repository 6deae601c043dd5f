"""Links in place of mounts that another run left, made, or has in use."""

from pathlib import Path

import pytest

from trainjob.errors import LaunchError
from trainjob.launch.launch import Mount
from trainjob.launch.mounts import mounted
from trainjob.run_lock import alone_in
from trainjob.workspace import Workspace


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "1" / "inputs" / "data"


@pytest.mark.parametrize("left", ["its workspace", "nothing"])
def test_a_link_that_another_run_left_when_it_was_killed_is_replaced(
    left: str, source: Path, tmp_path: Path
) -> None:
    target, killed = tmp_path / "dataset", Workspace.of_run("killed")
    target.symlink_to(killed.input_dir("data"))
    if left == "its workspace":
        killed.root.mkdir(parents=True)
        (killed.root / "lock").touch()

    with mounted((Mount(str(target), source),), "/nowhere"):
        assert target.readlink() == source

    assert not target.is_symlink()


def test_a_link_of_a_run_at_work_is_not_replaced(source: Path, tmp_path: Path) -> None:
    target, other = tmp_path / "dataset", Workspace.of_run("other")
    target.symlink_to(other.input_dir("data"))

    with (
        alone_in(other, grace_s=0),
        pytest.raises(LaunchError, match="in use by a run"),
        mounted((Mount(str(target), source),), "/nowhere"),
    ):
        pytest.fail("two runs had the same folder")

    assert target.readlink() == other.input_dir("data")


def test_a_link_that_another_run_made_meanwhile_is_left_to_it(source: Path, tmp_path: Path) -> None:
    target, other = tmp_path / "dataset", tmp_path / "runs" / "2"

    with mounted((Mount(str(target), source),), "/nowhere"):
        target.unlink()  # as a person may, who took it for one that was left
        target.symlink_to(other)

    assert target.readlink() == other
