"""How a run ends that a limit of its job stops: what is saved of it and what it says of that."""

from pathlib import Path

import pytest

from tests.flows.test_ends_of_runs import WRITE, run
from tests.jobs import make_job
from trainjob.storage.receipt import read_receipt, verify_receipt
from trainjob.workspace import Workspace

pytestmark = pytest.mark.usefixtures("prefect_server")

STAY = "import time\ntime.sleep(600)\n"


def test_a_limit_that_stops_a_restarted_attempt_loses_nothing_of_the_first(tmp_path: Path) -> None:
    script = (
        "import pathlib\n"
        "if not pathlib.Path('begun').exists():\n"
        "    pathlib.Path('begun').touch()\n"
        f"    {'; '.join(WRITE.splitlines())}\n"
        "    import signal\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{STAY}"
    )
    limits = {"auto_restart": 1, "auto_stop": "20s", "grace": "1s"}

    ended = run(make_job(tmp_path, script, limits=limits))

    assert ended.state.name == "AutoStopped"
    assert len(ended.report.attempts) == 2
    assert (tmp_path / "out" / "model.txt").read_text() == "weights"
    assert read_receipt(str(tmp_path / "out"), None).earlier == ("model.txt",)
    assert verify_receipt(str(tmp_path / "out"), None).is_result
    assert ended.message == "stopped by limits.auto_stop, outputs uploaded"
    assert [output.num_files for output in ended.report.outputs] == [1]
    assert "1 file of these is of an earlier attempt: model.txt" in ended.page
    previous = Workspace.of_run(ended.run_id).previous
    assert f"is in {previous}, a folder each" in ended.page


def test_a_run_that_is_stopped_before_it_wrote_anything_says_so(tmp_path: Path) -> None:
    ended = run(make_job(tmp_path, STAY, limits={"auto_stop": "1s", "grace": "1s"}))

    assert ended.state.name == "AutoStopped"
    assert ended.message == (
        "stopped by limits.auto_stop, outputs uploaded; there is no file in train_url"
    )
