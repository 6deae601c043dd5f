"""A run whose flow process is killed is started again, as often as its job allows.

The stories run at the same time, since each waits for the server most of its time.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Crashed, Pending

from deployments.automations import register_automations
from flows.tally import RESTARTS_LABEL
from tests.e2e.machine import begin_run, in_front_of
from tests.jobs import make_job
from tests.serving import Serve
from tests.waiting import PATIENCE_S, wait_until
from trainjob.storage.receipt import verify_receipt

ROOT = Path(__file__).parent.parent.parent
HEARTBEAT_S = 30  # the shortest that Prefect allows
HOLD_S = 20  # as the deployments have it: a busy worker reports a crash once more after 19 s
# A heartbeat, and what it takes to hold a killed run: with 10 s of it, 33 s were seen since its
# last heartbeat.
DEAD_AFTER_S = 80
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

# Goes on from its checkpoint; waits to be killed until it starts from `last`, then finishes.
SCRIPT = """\
import os, pathlib, sys, time
checkpoint = pathlib.Path(os.environ["TRAINJOB_CHECKPOINT_DIR"], "step.txt")
step = int(checkpoint.read_text()) if checkpoint.exists() else 0
checkpoint.write_text(str(step + 10))
with open({starts!r}, "a") as file: file.write(f"{{step}}\\n")
while step < {last}: time.sleep(0.1)
out = pathlib.Path(sys.argv[sys.argv.index("--train_url") + 1])
(out / "model.txt").write_text(str(step))
"""

# The same by ranks that form a group, and wait in a collective. Each notes itself, and who of an
# earlier group still lives.
GROUP_SCRIPT = """\
import json, os, pathlib, sys, time
import torch, torch.distributed as dist
checkpoint = pathlib.Path(os.environ["TRAINJOB_CHECKPOINT_DIR"], "step.txt")
starts = pathlib.Path({starts!r})
def lives(note):
    try: return (pathlib.Path("/proc") / str(note["pid"]) / "cmdline").read_bytes() != b""
    except OSError: return False
earlier = [json.loads(file.read_text()) for file in starts.parent.glob("rank-*")]
dist.init_process_group("gloo")
rank = dist.get_rank()
step = int(checkpoint.read_text()) if checkpoint.exists() else 0
note = {{"pid": os.getpid(), "alive": [note["rank"] for note in earlier if lives(note)]}}
note |= {{"rank": rank, "world_size": dist.get_world_size()}}
starts.with_name(f"rank-{{rank}}-from-{{step}}").write_text(json.dumps(note))
dist.barrier()
if rank == 0:
    checkpoint.write_text(str(step + 10))
    with starts.open("a") as file: file.write(f"{{step}}\\n")
num_ranks = torch.zeros(1)
while not num_ranks or step < {last}:
    num_ranks.fill_(1)
    dist.all_reduce(num_ranks)
    time.sleep(0.1)
if rank == 0:
    out = pathlib.Path(sys.argv[sys.argv.index("--train_url") + 1])
    (out / "model.txt").write_text(f"{{step}} of {{num_ranks.item():.0f}} ranks")
dist.destroy_process_group()
"""


@dataclass(frozen=True)
class Story:
    """A run of a job, and what became of it."""

    folder: Path
    run_id: UUID

    @property
    def starts(self) -> list[str]:
        """The steps that the training started from so far."""
        file = self.folder / "starts.txt"
        return file.read_text().split() if file.exists() else []

    @property
    def ranks(self) -> dict[str, dict[str, Any]]:
        """What ranks that form a group have noted of themselves, by rank and step."""
        files = sorted(self.folder.glob("rank-*"))
        return {file.name: json.loads(file.read_text()) for file in files}

    @property
    def run(self) -> FlowRun:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(self.run_id)

    @property
    def message(self) -> str:
        state = self.run.state
        return (state and state.message) or ""

    @property
    def history(self) -> list[State]:
        with get_client(sync_client=True) as client:
            found = client.read_flow_run_states(self.run_id)
        return sorted(found, key=lambda state: state.timestamp)

    @property
    def states(self) -> list[str]:
        return [state.name or "" for state in self.history]

    def kill_when_started(self, times: int) -> None:
        """Kill the flow process once the ranks have started for this time."""
        wait_for(lambda: len(self.starts) == times, self)
        kill(processes_of(self.run_id, whose_command_has=b"prefect"))

    def wait_until(self, *names: str) -> "Story":
        wait_for(lambda: self.states[-1] in names, self)
        return self


def wait_for(condition: Callable[[], bool], story: Story) -> None:
    wait_until(condition, said=lambda: (story.states, story.message))


def processes_of(run_id: UUID, whose_command_has: bytes = b"") -> list[int]:
    """Return the processes of the run: by "prefect" that of the flow, else its ranks as well."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_meant = whose_command_has in (folder / "cmdline").read_bytes()
            if is_meant and str(run_id).encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def job_of(
    folder: Path, auto_restart: int, last: int, script: str = SCRIPT, **changes: Any
) -> dict[str, Any]:
    folder.mkdir()
    script = script.format(starts=str(folder / "starts.txt"), last=last)
    limits = {"auto_restart": auto_restart, "grace": "2s"}
    return make_job(folder, script, limits=limits, **changes)


def submit(folder: Path, auto_restart: int, last: int, *given: str, **changes: Any) -> Story:
    job = job_of(folder, auto_restart, last, *given, **changes)
    return Story(folder, begin_run("cpu", job).id)


def killed_once(folder: Path, _env: dict[str, str]) -> Story:
    group: dict[str, Any] = {"resources": {"processes_per_node": 2}, "launcher": "torchrun"}
    story = submit(folder, 1, 10, GROUP_SCRIPT, **group)
    story.kill_when_started(1)
    return story.wait_until("Completed", "Failed")


def killed_twice(folder: Path, _env: dict[str, str]) -> Story:
    story = submit(folder, auto_restart=1, last=100)
    story.kill_when_started(1)
    story.kill_when_started(2)
    return story.wait_until("Completed", "Failed")


def killed_without_restarts(folder: Path, _env: dict[str, str]) -> Story:
    story = submit(folder, auto_restart=0, last=100)
    story.kill_when_started(1)
    return story.wait_until("Interrupted")


def killed_after_a_late_report(folder: Path, _env: dict[str, str]) -> Story:
    """As when a busy worker reports the crash of a process while the next one lives."""
    story = submit(folder, auto_restart=1, last=10)
    wait_for(lambda: len(story.starts) == 1, story)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(story.run_id, Crashed(message="reported late"))
    wait_for(lambda: story.message.startswith("its process lives"), story)
    story.kill_when_started(1)
    return story.wait_until("Completed", "Failed")


def lost_with_its_machine(folder: Path, env: dict[str, str]) -> Story:
    """Nobody is left to say what became of the run: neither its worker nor its guard."""
    job = job_of(folder, auto_restart=1, last=10)
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("training-job/cpu")
        # Pending: the worker of the pool leaves it to the process that is started here.
        run = client.create_flow_run_from_deployment(
            deployment.id, parameters={"job": job}, state=Pending()
        )
    story = Story(folder, run.id)
    command = [sys.executable, "-m", "prefect", "flow-run", "execute", str(run.id)]
    with (folder / "execute.log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    wait_for(lambda: len(story.starts) == 1, story)
    worker.kill()
    worker.wait()
    kill(processes_of(run.id))
    return story.wait_until("Completed", "Failed")


STORIES = (
    killed_once,
    killed_twice,
    killed_without_restarts,
    killed_after_a_late_report,
    lost_with_its_machine,
)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, "Future[Story]"]]:
    """Tell all stories on one server with one worker."""
    folder = tmp_path_factory.mktemp("redelivery")
    serve = Serve(folder)
    try:
        serve.wait_until_ready()
        url = f"http://127.0.0.1:{serve.port}/api"
        env = os.environ | {
            "PREFECT_API_URL": url,
            "PREFECT_CLIENT_MAX_RETRIES": "9",  # as the deployments have it
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
            "PREFECT_HOME": str(folder / "prefect"),
            "TRAINJOB_HOME": str(ROOT),
            "TRAINJOB_WORKDIR": str(folder / "runs"),
        }
        with in_front_of(url), ThreadPoolExecutor() as pool:
            with get_client(sync_client=True) as client:
                register_automations(client, DEAD_AFTER_S, HOLD_S)
            told = {
                story.__name__: pool.submit(copy_context().run, story, folder / story.__name__, env)
                for story in STORIES
            }
            # Otherwise the processes of one story would count as left by the test of another.
            wait(told.values())
            yield told
    finally:
        serve.process.send_signal(signal.SIGTERM)
        serve.process.wait(PATIENCE_S)


def result_of(story: Story) -> str:
    return (story.folder / "out" / "model.txt").read_text()


def test_a_group_whose_flow_process_is_killed_goes_on_from_its_checkpoint_as_a_new_group(
    stories: dict[str, "Future[Story]"],
) -> None:
    story = stories["killed_once"].result()

    assert story.states[-1] == "Completed", story.message
    assert story.starts == ["0", "10"]
    assert result_of(story) == "10 of 2 ranks"
    assert verify_receipt(str(story.folder / "out"), None).is_result
    # Not one AwaitingRestart: its worker may report the crash once more while it starts the next.
    assert story.run.labels[RESTARTS_LABEL] == 1
    names = ["rank-0-from-0", "rank-0-from-10", "rank-1-from-0", "rank-1-from-10"]
    assert list(story.ranks) == names
    assert len({rank["pid"] for rank in story.ranks.values()}) == len(names)
    assert [rank["world_size"] for rank in story.ranks.values()] == [2] * len(names)
    assert [rank["alive"] for rank in story.ranks.values()] == [[]] * len(names)


def test_a_run_that_has_used_its_restarts_fails_and_says_so(
    stories: dict[str, "Future[Story]"],
) -> None:
    story = stories["killed_twice"].result()

    assert story.states[-1] == "Failed"
    assert "auto_restart allows 1 restart" in story.message
    assert story.starts == ["0", "10"]


def test_a_run_that_did_not_ask_for_restarts_stays_crashed(
    stories: dict[str, "Future[Story]"],
) -> None:
    story = stories["killed_without_restarts"].result()

    stories["killed_once"].result()  # was killed at the same time, and started again since

    assert story.states[-1] == "Interrupted"
    assert story.run.state is not None
    assert story.run.state.is_crashed()
    assert "RestartPending" not in story.states
    assert story.starts == ["0"]


def test_a_run_that_its_process_took_back_goes_on_when_that_is_killed(
    stories: dict[str, "Future[Story]"],
) -> None:
    story = stories["killed_after_a_late_report"].result()

    assert story.states[-1] == "Completed", story.message
    assert story.starts == ["0", "10"]


def test_a_run_of_which_nothing_is_heard_any_more_goes_on_from_its_checkpoint(
    stories: dict[str, "Future[Story]"],
) -> None:
    story = stories["lost_with_its_machine"].result()

    assert story.states[-1] == "Completed", story.message
    assert story.starts == ["0", "10"]
    assert result_of(story) == "10"
    [reason] = [state.message or "" for state in story.history if state.name == "Crashed"]
    assert reason.startswith(f"nothing was heard of its process for {DEAD_AFTER_S} s"), reason
