"""Cards belong to one run at a time, and are free again however that run ends."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.launch.conftest import MakeLaunch
from tests.processes import marked_processes
from tests.waiting import PATIENCE_S, wait_until
from trainjob.errors import LaunchError
from trainjob.launch import card_leases, devices
from trainjob.launch.card_claims import Claims
from trainjob.launch.card_leases import leased_cards
from trainjob.launch.launch import Lease
from trainjob.launch.training import run_training
from trainjob.resources import Resources

ROOT = Path(__file__).parents[2]
_LEASE = """
import os, sys
from pathlib import Path
from trainjob.launch import devices
from trainjob.launch.card_leases import leased_cards
devices.DEV_DIR = Path(sys.argv[1])
"""
HOLDER = f"""{_LEASE}
with leased_cards("npu", int(sys.argv[2]), os.environ, run_id=f"run-{{os.getpid()}}") as lease:
    print([card.choice for card in lease.cards], flush=True)
    input()
"""
"""Takes cards, says which, and keeps them until its input ends."""
TRAINER = f"""{_LEASE}
import json
from trainjob.launch.launch import Launch
from trainjob.launch.training import run_training
about = json.loads(sys.argv[2])
for name in ("code_dir", "log_dir"):
    about[name] = Path(about[name])
with leased_cards("npu", 1, os.environ, run_id=about["run_id"]) as lease:
    run_training(Launch(**about, lease=lease))
"""
"""Trains on one card."""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two NPUs, as far as their files go, where nobody has claimed one."""
    for name in ("davinci0", "davinci1"):
        dev_dir = tmp_path / "dev"
        dev_dir.mkdir(exist_ok=True)
        (dev_dir / name).touch()
    monkeypatch.setattr(devices, "DEV_DIR", dev_dir)
    monkeypatch.setenv("TRAINJOB_CARDS_DIR", str(tmp_path / "cards"))
    monkeypatch.setattr(card_leases, "_POLL_S", 0.02)
    return dev_dir


class Process:
    """A script of this page in a process of its own."""

    def __init__(self, script: str, *words: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, words)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def says(self) -> str:
        """Wait for the next line and return it."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def waits_for(self, what: str) -> None:
        """Wait until it has told that it waits."""
        assert self.process.stderr
        line = self.process.stderr.readline()
        assert what in line, line

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(machine: Path) -> Iterator[Callable[..., Process]]:
    with ExitStack() as stack:

        def run(script: str, *words: object) -> Process:
            process = Process(script, machine, *words)
            stack.callback(process.close)
            return process

        yield run


def take(count: int = 1, timeout_s: float | None = 0.0, **environ: str):
    return leased_cards("npu", count, environ, run_id="ours", timeout_s=timeout_s)


def choices(lease: Lease | None) -> list[str]:
    assert lease
    return [card.choice for card in lease.cards]


def test_two_runs_never_have_the_same_card(start) -> None:
    other = start(HOLDER, 1)
    assert other.says() == "['0']"

    with take() as lease:
        assert choices(lease) == ["1"]


def test_a_run_of_several_cards_gets_them_in_ascending_order() -> None:
    with take(2, ASCEND_RT_VISIBLE_DEVICES="1,0") as lease:
        assert choices(lease) == ["0", "1"]


@pytest.mark.parametrize(
    ("resources", "count"),
    [
        ({"device": "cpu", "processes_per_node": 4}, 0),
        ({"device": "npu", "processes_per_node": 4}, 4),
        ({"flavor": "8c40g V100*2", "processes_per_node": 1}, 2),
        ({"device": "cuda", "flavor": "8c40g"}, 1),
    ],
)
def test_a_job_wants_a_card_a_rank_or_those_of_its_flavor(resources, count: int) -> None:
    assert Resources.model_validate(resources).num_cards == count


def test_a_cpu_job_takes_no_cards(tmp_path: Path) -> None:
    with leased_cards("cpu", 2, {}, run_id="ours") as lease:
        assert lease is None
    assert not (tmp_path / "cards").exists()


def test_cards_are_free_again_at_the_end_of_the_block(tmp_path: Path) -> None:
    with take(2):
        pass

    with take(2) as lease:
        assert choices(lease) == ["0", "1"]
    assert list((tmp_path / "cards").iterdir()) == []


def test_who_waits_too_long_hears_who_has_the_cards(start) -> None:
    other = start(HOLDER, 1)
    other.says()

    with pytest.raises(LaunchError) as caught, take(2):
        pass

    run = f"run-{other.process.pid}"
    assert str(caught.value) == (
        f"asked for 2 cards of npu, found 1 of 2 free; run {run} has npu:0, after 0s; wait for "
        "those runs or stop them, ask for less, or raise limits.wait_for_cards"
    )


def test_more_cards_than_the_machine_has_are_refused_at_once() -> None:
    with pytest.raises(LaunchError, match="asked for 3 cards of npu, found 2"), take(3, None):
        pass


def test_a_killed_holder_frees_its_cards(start) -> None:
    other = start(HOLDER, 2)
    other.says()

    other.process.kill()

    with take(2, timeout_s=60) as lease:
        assert choices(lease) == ["0", "1"]


def test_a_run_that_wants_many_is_not_overtaken(start) -> None:
    first = start(HOLDER, 1)
    first.says()
    big = start(HOLDER, 2)
    big.waits_for("1 of 2 free")

    with pytest.raises(LaunchError, match=r"1 of 2 free.*; 1 run asked before"), take(1):
        pass

    first.close()
    assert big.says() == "['0', '1']"


def test_runs_of_other_cards_do_not_wait_for_one_another(start, monkeypatch) -> None:
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0")
    start(HOLDER, 1).says()
    start(HOLDER, 1).waits_for("0 of 1 free")

    with take(ASCEND_RT_VISIBLE_DEVICES="1") as lease:
        assert choices(lease) == ["1"]


def test_who_gives_up_waiting_leaves_the_queue(start) -> None:
    start(HOLDER, 1).says()
    big = start(HOLDER, 2)
    big.waits_for("1 of 2 free")

    big.process.send_signal(signal.SIGINT)
    big.process.wait()

    with take() as lease:
        assert choices(lease) == ["1"]


@pytest.mark.parametrize("content", ["", "[]", '{"run": 1}', "not json"])
def test_what_is_no_claim_is_passed_over(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "cards"
    folder.mkdir()
    for name in ("00000001.claim", "x.claim", "README"):
        (folder / name).write_text(content)

    with take() as lease:
        assert choices(lease) == ["0"]


def test_all_users_of_the_machine_can_claim(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with take():
            [claim] = (tmp_path / "cards").iterdir()
            modes = [path.stat().st_mode & 0o7777 for path in (claim, claim.parent)]
    finally:
        os.umask(before)

    assert modes == [0o644, 0o1777]


def test_a_folder_that_cannot_be_had_is_told(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRAINJOB_CARDS_DIR", str(tmp_path / "file"))

    with pytest.raises(LaunchError, match=r"found Not a directory; .*TRAINJOB_CARDS_DIR"), take():
        pass


def test_ranks_see_the_cards_of_their_run_alone(make_launch: MakeLaunch, watch) -> None:
    script = "import os; print(os.environ['ASCEND_RT_VISIBLE_DEVICES'])"

    with take(), take() as lease:
        ran = watch(make_launch(script, device="npu", lease=lease))

    assert ran.lines() == ["1"]


def test_a_card_of_a_killed_flow_is_free_once_its_ranks_have_ended(
    make_launch: MakeLaunch, start
) -> None:
    """The ranks may still compute on it for their grace, which they use up here."""
    launch = make_launch(
        "import signal; signal.signal(15, signal.SIG_IGN); print(1); signal.pause()", grace_s=6.0
    )
    names = ("run_id", "launcher", "world_size", "program", "is_script", "env", "grace_s")
    about = {name: getattr(launch, name) for name in names}
    about |= dict.fromkeys(("cores", "auto_stop_s")) | {"device": "npu"}
    about |= {name: str(getattr(launch, name)) for name in ("code_dir", "log_dir")}
    flow = start(TRAINER, json.dumps(about))
    wait_until(lambda: launch.rank_log(0).exists() and launch.rank_log(0).read_text())

    flow.process.kill()

    with pytest.raises(LaunchError, match=re.escape(launch.run_id)), take(2):
        pass
    with take(2, timeout_s=PATIENCE_S):
        assert marked_processes(launch.run_id) == {}


def test_nothing_that_ranks_leave_behind_keeps_their_cards(make_launch: MakeLaunch) -> None:
    """The descriptor of the claim is the supervisor's alone."""
    script = "import os; print(os.listdir('/proc/self/fd'), flush=True)"
    with take() as lease:
        assert lease
        run_training(launch := make_launch(script, device="npu", lease=lease))

        assert f"'{lease.claim}'" not in launch.rank_log(0).read_text()


@pytest.mark.parametrize(
    "said",
    [
        {"run": "newer", "pid": 1, "count": 1, "among": ["npu:0"], "has": ["npu:0"], "new": 1},
        {"has": ["npu:0"]},
    ],
    ids=["a-newer-one", "the-least"],
)
def test_a_claim_of_another_version_counts(tmp_path: Path, said) -> None:
    folder = tmp_path / "cards"
    folder.mkdir()
    with (folder / "00000001.claim").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(json.dumps(said))
        other.flush()

        with take() as lease:
            assert choices(lease) == ["1"]


def test_a_driver_that_hangs_holds_up_no_other_run(start, monkeypatch) -> None:
    """Cards in use are asked for outside of the lock that all runs of the machine share."""

    def ask(_device: str) -> set[str]:
        with Claims().alone():
            return {"npu:0"}

    monkeypatch.setattr(card_leases, "cards_in_use", ask)

    with take() as lease:
        assert choices(lease) == ["1"]
