"""What a run that ends well does with checkpoints that are nowhere but on its machine."""

from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State

from tests.flows.test_ends_of_runs import retry, run
from tests.jobs import make_job
from trainjob.storage.own_files import SUCCESS
from trainjob.workspace import Workspace

pytestmark = pytest.mark.usefixtures("prefect_server")

# The file is where the folder was: as of a store that refuses what it took before.
SAVE = """\
import os, pathlib, shutil, time
from trainjob.progress import report, should_stop
should_stop()
if {writes}:
    (pathlib.Path(os.environ["TRAIN_URL"]) / "model.txt").write_text("weights")
(pathlib.Path(os.environ["TRAINJOB_CHECKPOINT_DIR"]) / "state.txt").write_text("state")
store = pathlib.Path({store!r})
while {is_refused} and not store.is_file():
    shutil.rmtree(store, ignore_errors=True)
    try:
        store.write_text("")
    except IsADirectoryError:
        pass
report(1, done=1.0)
while {waits} and not should_stop():
    time.sleep(0.01)
"""


def job(
    folder: Path, *, is_refused: bool, waits: bool = False, writes: bool = True
) -> dict[str, Any]:
    store = str(folder / "kept")
    script = SAVE.format(store=store, is_refused=is_refused, waits=waits, writes=writes)
    limits = {"target": {"metric": "done", "at_least": 1}, "grace": "60s"} if waits else {}
    return make_job(folder, script, checkpoints={"url": store}, limits=limits)


@pytest.mark.parametrize(
    ("waits", "name"), [(False, "Completed"), (True, "TargetReached")], ids=["ended", "stopped"]
)
def test_checkpoints_that_got_to_no_store_stay_on_the_machine_and_the_state_says_so(
    tmp_path: Path, waits: bool, name: str
) -> None:
    ended = run(job(tmp_path, is_refused=True, waits=waits))

    workspace = Workspace.of_run(ended.run_id)
    assert ended.state.name == name
    assert (tmp_path / "out" / SUCCESS).exists()
    assert (workspace.checkpoints / "state.txt").read_text() == "state"
    for told_of in (ended.message, ended.page):
        assert f"checkpoints stay in {workspace.checkpoints}" in told_of
    assert not workspace.outputs.exists()


def test_checkpoints_that_are_in_their_store_leave_the_machine(tmp_path: Path) -> None:
    ended = run(job(tmp_path, is_refused=False))

    workspace = Workspace.of_run(ended.run_id)
    assert (tmp_path / "kept" / "state.txt").read_text() == "state"
    assert not workspace.checkpoints.exists()
    assert "checkpoints stay" not in ended.message


def retried_at_its_upload(folder: Path, *, is_refused: bool) -> tuple[State[Any], Workspace]:
    """Retry a run that trained and had no output; its process has not seen what was saved."""
    failed = run(job(folder, is_refused=is_refused, writes=False))
    assert failed.state.is_failed()
    workspace = Workspace.of_run(failed.run_id)
    (workspace.output_dir("train_url") / "model.txt").write_text("weights")
    retried = retry(failed.run_id)
    assert retried.name == "Completed"
    return retried, workspace


def test_a_retry_that_trained_before_keeps_the_checkpoints_that_no_store_has(
    tmp_path: Path,
) -> None:
    _, workspace = retried_at_its_upload(tmp_path, is_refused=True)

    assert (workspace.checkpoints / "state.txt").read_text() == "state"


def test_a_retry_that_trained_before_removes_the_checkpoints_that_the_store_has(
    tmp_path: Path,
) -> None:
    retried, workspace = retried_at_its_upload(tmp_path, is_refused=False)

    assert "checkpoints stay" not in (retried.message or "")
    assert (tmp_path / "kept" / "state.txt").read_text() == "state"
    assert not workspace.checkpoints.exists()
