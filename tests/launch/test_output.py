"""What ranks write reaches the watchers: all of it, whatever it is, before the call returns."""

import time

import pytest

from trainjob.errors import LaunchError
from trainjob.events import Event, RankOutput, listening
from trainjob.launch.training import run_training


def test_both_streams_of_a_rank_arrive_in_order(make_launch, watch):
    script = """
        import os, sys
        print("one")
        print("two", file=sys.stderr)
        os.system("echo three")
        os.write(1, b"four\\n")
        print("five", end="")
    """

    assert watch(make_launch(script)).lines() == ["one", "two", "three", "four", "five"]


@pytest.mark.mpi
def test_every_rank_has_its_own_log(make_launch, watch):
    launch = make_launch("import os; print(os.environ['RANK'])", launcher="mpi", world_size=3)

    ran = watch(launch)

    for rank in range(3):
        assert ran.lines(rank) == [str(rank)]
        assert launch.rank_log(rank).read_text() == f"{rank}\n"
    assert ran.lines(None) == []


def test_bytes_that_are_no_text_arrive(make_launch, watch):
    launch = make_launch(r"import os; os.write(1, b'caf\xe9\n\x00\xff')")

    ran = watch(launch)

    assert ran.lines() == ["caf\ufffd", "\x00\ufffd"]
    assert launch.rank_log(0).read_bytes() == b"caf\xe9\n\x00\xff"


def test_20_megabytes_arrive_whole_and_soon(make_launch, watch):
    script = """
        import sys
        line = "x" * 99 + "\\n"
        for _ in range(200):
            sys.stdout.write(line * 1000)
    """
    started = time.monotonic()

    ran = watch(make_launch(script))

    assert len(ran.lines()) == 200_000
    assert set(ran.lines()) == {"x" * 99}
    assert time.monotonic() - started < 45


def test_lines_come_while_the_rank_runs_and_in_batches(make_launch, run_until):
    script = """
        import os, time
        print("\\n".join(map(str, range(1000))), flush=True)
        print("ready", flush=True)
        while not os.path.exists("go"):
            time.sleep(0.01)
    """
    launch = make_launch(script)
    events: list[Event] = []

    with listening(events.append):
        run_until(launch, "ready", (launch.code_dir / "go").touch)

    outputs = [event for event in events if isinstance(event, RankOutput)]
    assert sum(len(output.lines) for output in outputs) == 1001
    assert len(outputs) < 20


def test_what_a_killed_rank_wrote_is_not_lost(make_launch, watch):
    script = """
        import os, signal
        print("last words")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    launch = make_launch(script)

    with pytest.raises(Exception, match="last words"):
        watch(launch)

    assert launch.rank_log(0).read_text() == "last words\n"


def test_the_launcher_is_heard_only_if_no_rank_began(make_launch, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('no torch today')\n")
    events: list[Event] = []

    with listening(events.append), pytest.raises(LaunchError):
        run_training(make_launch("", world_size=2, env={"PYTHONPATH": str(tmp_path)}))

    assert events == [RankOutput(None, ("no torch today",))]


def test_a_rank_that_closes_its_output_ends_well(make_launch, watch):
    script = "import os, sys\nprint('x')\nsys.stdout.close()\nos.close(2)\n"

    assert watch(make_launch(script)).lines() == ["x"]


def test_a_rank_has_no_input(make_launch, watch):
    assert watch(make_launch("import sys; print(repr(sys.stdin.read()))")).lines() == ["''"]
