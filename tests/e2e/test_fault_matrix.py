"""Whatever goes wrong: the run has the right state, names the cause, and loses no checkpoint.

Every fault of a rank, a launcher or a supervisor is had under each launcher; two of them, for which
the ranks must be torch's or MPI's own, in `test_fault_drill`. All runs go at the same time, since
each waits most of its time; the tests look at what became of them. What happens when a worker, a
server or a flow process under a worker is killed is told by `test_redelivery` and
`test_worker_faults`.
"""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.watched_runs import (
    LAUNCHERS,
    Ended,
    run,
    started,
    stored_steps,
    watched_job,
)
from tests.processes import marked_processes
from tests.s3_faults import Fault, fault_proxy
from tests.waiting import PATIENCE_S, wait_until
from trainjob.events import AttemptEnded, AttemptStarted, Event
from trainjob.storage.receipt import verify_receipt

FAULT_AT, LAST = 2, 4
NUM_AT_ONCE = 4
OUTAGE_S = 30.0
NUM_PRINTED = {"mpi": 100_000_000, "torchrun": 1_000_000_000}  # bytes
STALL = {"stall": "10s", "grace": "2s"}  # torchrun leaves slowly on a busy machine
LOSS = {"name": "loss", "regex": "loss = ([0-9.e+-]+)"}
# Reached at the step of the fault, however long the launcher needs to get there.
TARGET = {"target": {"metric": "loss", "at_most": 1 / FAULT_AT}, "grace": "1s"}
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500), pytest.mark.usefixtures("prefect_server")]


@dataclass(frozen=True)
class Row:
    """A fault, and what should become of a run that has it in its first attempt.

    Attributes:
        state: Name of the state that the run ends in.
        cause: Regular expression for the start of the line that says how the attempt failed;
            ``LAUNCHER`` in it stands for the name of the launcher.
        rule: Name of the rule of the catalogue that explains it.
        restarts: Whether the training is started again.
        limits: Those of the job beside ``auto_restart: 1``.
        launchers: What starts the ranks: the fault is had once under each.
    """

    state: str
    cause: str | None = None
    rule: str | None = None
    restarts: bool = False
    limits: dict[str, Any] = field(default_factory=dict)
    launchers: tuple[str, ...] = LAUNCHERS


ROWS = {
    "raise": Row("Failed", r"rank 1 of 2 failed first: ValueError: no such class \(exit code 1\)"),
    "exit": Row("Failed", r"rank 1 of 2 failed first: sys.exit \(exit code 3\)"),
    "dev-full": Row(
        "Failed",
        r"rank 1 of 2 failed first: OSError: \[Errno 28\] No space left on device",
        "no space left on device",
    ),
    "sigsegv": Row(
        "Completed", "rank 1 of 2 was killed first by SIGSEGV", "segmentation fault", restarts=True
    ),
    "sigkill": Row(
        "Completed",
        "rank 1 of 2 was killed first by SIGKILL",
        "killed without a trace",
        restarts=True,
    ),
    "deaf": Row("TargetReached", limits=TARGET),
    "collective": Row(
        "Completed",
        r"stalled: .* for \d+s; rank 1 is behind .* while the others wait in all_reduce",
        "stalled",
        restarts=True,
        limits=STALL,
        launchers=("torchrun",),
    ),
    "loader": Row(
        "Completed",
        r"stalled: .* for \d+s; rank 1 is behind .*it is in train.py:\d+ next_batch "
        "while the others wait in Barrier",
        "stalled",
        restarts=True,
        limits=STALL,
        launchers=("mpi",),
    ),
    "leaves": Row(
        "Failed",
        "rank 1 of 2 left early, without an error; then rank 0 failed: RuntimeError",
        "a rank left early",
        launchers=("torchrun",),
    ),
    "finalizes": Row(
        "Failed",
        r"stalled: .* for \d+s; rank 1 left early \(it waits in Finalize .* wait in Barrier",
        "a rank left early",
        limits=STALL,
        launchers=("mpi",),
    ),
    "prints": Row("Completed"),
    "launcher": Row(
        "Completed",
        r"the launcher \(LAUNCHER\) was killed by SIGKILL",
        "launcher died",
        restarts=True,
    ),
    "supervisor": Row(
        "Completed", "the supervisor of the run died", "supervisor died", restarts=True
    ),
}
NAMES = [f"{fault}-{launcher}" for fault, row in ROWS.items() for launcher in row.launchers]


def run_row(folder: Path, name: str) -> Ended:
    fault, _, launcher = name.rpartition("-")
    told = {"fault": fault, "fault_at": FAULT_AT, "steps": LAST}
    limits = {"auto_restart": 1} | ROWS[fault].limits
    changes = {"name": name, "launcher": launcher, "limits": limits, "metrics": [LOSS]}
    env = {"NUM_PRINTED_BYTES": str(NUM_PRINTED[launcher])}
    ended = run(watched_job(folder, told, env=env, **changes))
    if fault == "prints":
        log = Path(ended.report.logs or "", "attempt-0", "rank-1.log")
        (folder / "printed").write_text(str(log.stat().st_size))
        log.unlink()  # a gigabyte is enough to make the databases of other tests slow
    return ended


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def rows(
    folder: Path, prefect_server: str, outages: dict[str, "Outage"]
) -> dict[str, "Future[Any]"]:
    """Run all rows to their ends; who waits for its store takes no other's place."""
    with (
        pytest.MonkeyPatch.context() as patch,
        ThreadPoolExecutor(NUM_AT_ONCE) as pool,
        ThreadPoolExecutor() as waiting,
    ):
        patch.setenv("TRAINJOB_WORKDIR", str(folder / "runs"))
        told: dict[str, Future[Any]] = {}
        for launcher, outage in outages.items():
            name = f"store-{launcher}"
            told[name] = waiting.submit(
                copy_context().run, lose_store, folder / name, launcher, outage
            )
            name = f"flow-{launcher}"
            told[name] = pool.submit(kill_flow, folder / name, launcher, prefect_server)
        for name in NAMES:
            told[name] = pool.submit(copy_context().run, run_row, folder / name, name)
        return told


@pytest.mark.mpi
@pytest.mark.parametrize("name", NAMES)
def test_a_fault_is_named_and_costs_no_checkpoint(
    name: str, rows: dict[str, "Future[Ended]"], folder: Path
) -> None:
    fault, _, launcher = name.rpartition("-")
    row, ended, out = ROWS[fault], rows[name].result(), folder / name / "out"

    assert ended.state.name == row.state, ended.state.message
    assert ended.processes_left == {}
    assert len(ended.attempts) == 1 + row.restarts
    steps = stored_steps(folder / name / "checkpoints")
    assert steps[-1] == (LAST if row.state == "Completed" else FAULT_AT)
    assert (out / "starts.txt").read_text().split() == ["0", str(FAULT_AT)][: 1 + row.restarts]
    assert verify_receipt(str(out), None).problems == ()
    assert f"# {name}: {row.state}" in ended.page
    if row.cause is not None:
        cause = row.cause.replace("LAUNCHER", launcher)
        assert re.match(cause, ended.failure.headline), ended.failure.headline
        assert (ended.failure.rule and ended.failure.rule.name) == row.rule
        assert ended.report.attempts[0].outcome == ended.failure.headline


@pytest.mark.mpi
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_everything_that_a_rank_prints_is_in_its_log(
    launcher: str, rows: dict[str, "Future[Ended]"], folder: Path
) -> None:
    rows[f"prints-{launcher}"].result()

    size_bytes = int((folder / f"prints-{launcher}" / "printed").read_text())
    assert size_bytes == len("before\n") + NUM_PRINTED[launcher] // 1024 * 1024


@pytest.mark.mpi
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_full_disk_is_named_and_costs_no_checkpoint(
    launcher: str, tmp_path: Path, prefect_server: str
) -> None:
    """Logs, records, checkpoints and outputs are on the disk that a rank fills."""
    fault = {"fault": "disk", "fault_at": FAULT_AT, "steps": LAST}
    job = watched_job(tmp_path, fault, launcher=launcher)
    env = {"PREFECT_API_URL": prefect_server, "TRAINJOB_WORKDIR": str(tmp_path / "disk")}

    with mounted(tmp_path / "disk", "8m"), started(tmp_path, job, env) as process:
        _, told = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 1, told
    assert "no space left on device" in told
    assert "No space left on device" in told
    assert stored_steps(tmp_path / "checkpoints")[-1] == FAULT_AT
    assert (tmp_path / "out" / "starts.txt").read_text().split() == ["0"]


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """Have a disk of its own at `folder`."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class Outage:
    """A store that is gone from the first attempt of a run until some time after its end."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self.ends: float | None = None
        self.num_refused = 0

    def rule(self, _method: str, path: str) -> Fault:
        if self.is_over or f"/{self.bucket}" not in path:
            return None
        self.num_refused += 1
        return "gone"

    @property
    def is_over(self) -> bool:
        # Refused twice, however late the run gets to its store: once could be had without a retry.
        return self.ends is None or (time.monotonic() > self.ends and self.num_refused > 1)

    def watch(self, event: Event) -> None:
        if isinstance(event, AttemptStarted):
            self.ends = float("inf")
        elif isinstance(event, AttemptEnded):
            self.ends = time.monotonic() + OUTAGE_S


@pytest.fixture(scope="module")
def outages(s3: Any) -> Iterator[dict[str, Outage]]:
    """A store for a run under each launcher, which is gone as the run says."""
    outages = {launcher: Outage(s3.new_bucket()) for launcher in LAUNCHERS}

    def rule(method: str, path: str) -> Fault:
        return next((f for outage in outages.values() if (f := outage.rule(method, path))), None)

    with fault_proxy(s3.port, rule) as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in (s3.env | {"AWS_ENDPOINT_URL": proxy.endpoint_url}).items():
            patch.setenv(name, value)
        yield outages


def lose_store(folder: Path, launcher: str, outage: Outage) -> Ended:
    url = f"s3://{outage.bucket}"
    checkpoints = {"url": f"{url}/checkpoints/"}
    outputs = [{"name": "train_url", "url": f"{url}/out/"}]
    places: dict[str, Any] = {"checkpoints": checkpoints, "outputs": outputs}
    job = watched_job(folder, {"steps": LAST}, launcher=launcher, **places)
    return run(job, outage.watch)


@pytest.mark.mpi
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_store_that_is_gone_for_a_while_costs_nothing(
    launcher: str, rows: dict[str, "Future[Ended]"], outages: dict[str, Outage], s3: Any
) -> None:
    ended, outage = rows[f"store-{launcher}"].result(), outages[launcher]

    assert ended.state.name == "Completed", ended.state.message
    assert outage.num_refused > 1
    assert s3.get(outage.bucket, "out/model.txt") == str(LAST).encode()
    assert "out/_SUCCESS" in s3.keys(outage.bucket)
    assert f"checkpoints/step-{LAST:08d}/COMPLETE" in s3.keys(outage.bucket)
    assert "MISSING" not in ended.page


@pytest.mark.mpi
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_flow_process_leaves_no_process_and_the_next_run_goes_on(
    launcher: str, rows: dict[str, "Future[Any]"], folder: Path
) -> None:
    left, first, second = rows[f"flow-{launcher}"].result()

    folder = folder / f"flow-{launcher}"
    assert left == {}
    assert stored_steps(folder / "checkpoints")[-1] == LAST
    assert second["state"] == "Completed"
    assert second["run_id"] != first
    out = folder / "out" / second["run_id"]
    assert (out / "starts.txt").read_text().split() == [str(FAULT_AT)]
    assert (out / "model.txt").read_text() == str(LAST)


def kill_flow(folder: Path, launcher: str, api_url: str) -> tuple[dict[int, str], str, Any]:
    """Kill a flow process as soon as the last step is in its store, and run the job again.

    Returns:
        What is left of the first run, though no rank of it ever leaves by itself, its id, and what
        the second run says.
    """
    outputs = [{"name": "train_url", "url": str(folder / "out" / "{run_id}")}]
    fault = {"fault": "wait", "fault_at": FAULT_AT, "steps": LAST}
    changes: dict[str, Any] = {"launcher": launcher, "limits": {"grace": "1s"}}
    job = watched_job(folder, fault, outputs=outputs, **changes)
    env = {
        "PREFECT_API_URL": api_url,
        "PREFECT_CLIENT_MAX_RETRIES": "9",  # as the runs beside it, which keep SQLite busy
        "TRAINJOB_WORKDIR": str(folder / "runs"),
    }
    with started(folder, job, env) as process:
        saved = folder / "checkpoints"
        wait_until(lambda: FAULT_AT in stored_steps(saved) or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        [run_id] = [logs.parent.name for logs in (folder / "runs").glob("*/logs")]
        assert marked_processes(run_id)
        process.kill()
    with suppress(AssertionError):
        wait_until(lambda: not marked_processes(run_id))
    left = marked_processes(run_id)
    job["hyperparameters"] = {"steps": LAST}
    with started(folder, job, env) as process:
        said, _ = process.communicate(timeout=PATIENCE_S)
    return left, run_id, json.loads(said)
