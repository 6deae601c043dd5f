"""Looking at stacks takes no signal from a script: SIGUSR2 stays what that makes of it."""

import os
import signal

import pytest

from tests.launch.conftest import read_record
from trainjob.launch.failure import TrainingStalled
from trainjob.launch.training import run_training

TAKES_IT = {
    "faulthandler": "import faulthandler\nfaulthandler.register(signal.SIGUSR2)\n",
    "handler": "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(0))\n",
}


@pytest.mark.parametrize("takes", TAKES_IT.values(), ids=TAKES_IT)
def test_a_script_that_uses_sigusr2_and_hangs_is_stopped_as_stalled(make_launch, takes):
    hangs = "def forgotten():\n    time.sleep(60)\nforgotten()\n"
    launch = make_launch(f"import signal, sys, time\n{takes}{hangs}", stall_s=1.0)

    with pytest.raises(TrainingStalled):
        run_training(launch)

    assert "in forgotten" in read_record(launch, "stall")["ranks"][0]["stack"]
    assert launch.rank_log(0).read_text() == ""


def test_a_silent_script_that_leaves_on_sigusr2_trains_to_its_end(make_launch):
    script = f"""
        import pathlib, signal, sys, time
        {TAKES_IT["handler"]}
        end = time.monotonic() + 3
        while time.monotonic() < end:
            pass
        pathlib.Path("trained").touch()
    """
    launch = make_launch(script, stall_s=1.5)

    assert run_training(launch).reason == "finished"
    assert (launch.code_dir / "trained").exists()


def test_sigusr2_from_elsewhere_reaches_the_script_that_takes_it(make_launch, run_until):
    script = """
        import signal, sys, time
        signal.signal(signal.SIGUSR2, lambda *_: sys.exit(3))
        print("ready", flush=True)
        time.sleep(60)
    """
    launch = make_launch(script)

    with pytest.raises(Exception, match="exit code 3"):
        run_until(
            launch, "ready", lambda: os.kill(read_record(launch, "begin-0")["pid"], signal.SIGUSR2)
        )


def test_a_signal_for_stacks_does_not_end_a_command(make_launch, run_until):
    launch = make_launch(command=("sh", "-c", "echo ready; while [ ! -e go ]; do sleep 0.1; done"))

    def ask() -> None:
        os.kill(read_record(launch, "begin-0")["pid"], signal.SIGRTMAX - 5)
        (launch.code_dir / "go").touch()

    assert run_until(launch, "ready", ask).reason == "finished"
