"""Draining pools of a real server, whose runs these tests move by hand."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Running

from deployments import worker_process
from deployments.drain import drain, main, resume
from deployments.worker_process import stop_command
from tests.processes import finisher_in
from tests.waiting import PATIENCE_S, wait_until


@flow(name="drained")
def drained() -> None:
    """Stand for a flow whose runs these tests make."""


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def pool(client: SyncPrefectClient) -> Iterator[str]:
    """Make a pool that no worker serves."""
    name = f"pool-{uuid4().hex[:8]}"
    client.create_work_pool(WorkPoolCreate(name=name, type="process"))
    yield name
    client.delete_work_pool(name)


def submitted(client: SyncPrefectClient, pool: str, name: str) -> FlowRun:
    flow_id = client.create_flow(drained)
    deployment = client.create_deployment(flow_id, f"on-{pool}", work_pool_name=pool)
    return client.create_flow_run_from_deployment(deployment, name=name)


def begun(client: SyncPrefectClient, pool: str, name: str) -> FlowRun:
    run = submitted(client, pool, name)
    client.set_flow_run_state(run.id, Running(), force=True)
    return run


def test_a_drained_pool_waits_for_what_runs_and_keeps_what_does_not(
    client: SyncPrefectClient, pool: str
) -> None:
    run = begun(client, pool, "digits-1")
    submitted(client, pool, "digits-2")
    said: list[str] = []
    results: list[bool] = []

    def drain_it() -> None:
        with get_client(sync_client=True) as own:
            results.append(drain(own, [pool], said.append, poll_s=0.05))

    draining = threading.Thread(target=drain_it)
    draining.start()
    wait_until(lambda: "waits for 1 run: digits-1 (Running)" in said)
    assert client.read_work_pool(pool).is_paused
    client.set_flow_run_state(run.id, Completed(), force=True)
    draining.join(PATIENCE_S)

    assert results == [True]
    assert said[0] == f"{pool}: takes no new runs"
    assert said[-1] == f"{pool}: nothing runs; left for --resume: 1 run; no worker is online"
    assert client.read_work_pool(pool).is_paused


def test_waiting_ends_at_its_timeout_and_the_pool_stays_paused(
    client: SyncPrefectClient, pool: str
) -> None:
    begun(client, pool, "endless")
    said: list[str] = []

    assert not drain(client, [pool], said.append, timeout_s=0, poll_s=0.05)

    assert "the pools stay paused" in said[-1]
    assert client.read_work_pool(pool).is_paused


def test_runs_of_other_pools_are_not_waited_for(client: SyncPrefectClient, pool: str) -> None:
    other = f"other-{pool}"
    client.create_work_pool(WorkPoolCreate(name=other, type="process"))
    begun(client, other, "elsewhere")

    assert drain(client, [pool], lambda _line: None, timeout_s=0, poll_s=0.05)

    assert not client.read_work_pool(other).is_paused
    client.delete_work_pool(other)


def test_a_resumed_pool_takes_runs_and_says_that_nobody_serves_it(
    client: SyncPrefectClient, pool: str
) -> None:
    drain(client, [pool], lambda _line: None, poll_s=0.05)
    said: list[str] = []

    resume(client, [pool], said.append)

    assert said == [f"{pool}: takes runs again, but no worker of it is online"]
    assert not client.read_work_pool(pool).is_paused


def test_an_unknown_pool_is_told_with_those_that_there_are(
    pool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["nowhere"]) == 1

    error = capsys.readouterr().err
    assert "asked for the pool nowhere" in error
    assert pool in error


def worker_of(pool: str) -> "subprocess.Popen[bytes]":
    """Start a process that has what is known of a worker from outside: the words it began with."""
    waits = [sys.executable, "-c", "import signal; signal.pause()"]
    return subprocess.Popen([*waits, "worker", "start", "--pool", pool])


def test_a_worker_is_stopped_when_nothing_runs_any_more(
    pool: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.drain._POLL_S", 0.05)
    worker = worker_of(pool)

    code = main([pool, "--stop", str(worker.pid)])

    assert worker.wait(PATIENCE_S) < 0
    assert code == 0
    assert f"worker {worker.pid} has stopped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cgroups", "command"),
    [
        (
            "0::/system.slice/system-trainjob.slice/trainjob-worker@gpu.service/worker\n",
            "systemctl stop trainjob-worker@gpu.service",
        ),
        (
            "4:memory:/\n1:name=systemd:/system.slice/trainjob-worker@gpu.service\n0::/\n",
            "systemctl stop trainjob-worker@gpu.service",
        ),
        (
            "0::/user.slice/user-7.slice/user@7.service/app.slice/worker.service\n",
            "systemctl --user stop worker.service",
        ),
    ],
    ids=["cgroups-v2", "cgroups-v1", "of-a-user"],
)
def test_a_worker_that_its_service_would_start_again_is_left_with_what_stops_it(
    client: SyncPrefectClient,
    pool: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    cgroups: str,
    command: str,
) -> None:
    """Said to have stopped, it would take runs again 5 s later, with `Restart=always`."""
    monkeypatch.setattr("deployments.drain._POLL_S", 0.05)
    monkeypatch.setattr("deployments.worker_process._cgroups_of", lambda _pid: cgroups)
    with worker_of(pool) as worker:
        code = main([pool, "--stop", str(worker.pid)])
        is_alive = worker.poll() is None
        worker.kill()

    said = capsys.readouterr()
    assert (code, is_alive) == (1, True)
    assert "nothing runs" in said.out
    assert "has stopped" not in said.out
    assert f"`{command}`" in said.err
    assert client.read_work_pool(pool).is_paused


@pytest.mark.parametrize(
    "cgroups",
    [
        "0::/user.slice/user-7.slice/user@7.service/app.slice/vte-spawn-1.scope\n",
        "0::/user.slice/user-7.slice/session-3.scope\n",
        "",
    ],
    ids=["terminal", "ssh", "unknown"],
)
def test_a_worker_of_a_terminal_belongs_to_no_service(cgroups: str) -> None:
    assert stop_command(cgroups) is None


@pytest.mark.parametrize("is_of_systemd", [True, False])
def test_what_a_service_has_begun_is_not_the_service_itself(is_of_systemd: bool) -> None:
    """The one has its own id in the variable, the others that of the one, or another's."""
    exec_pid = "$$" if is_of_systemd else "1"
    shell = f"SYSTEMD_EXEC_PID={exec_pid} exec {sys.executable} -c 'import signal; signal.pause()'"
    with killed_at_the_end(["sh", "-c", shell]) as process:
        words = Path(f"/proc/{process.pid}/cmdline")
        wait_until(lambda: words.read_bytes().startswith(os.fsencode(sys.executable)))
        expected = Path(f"/proc/{process.pid}/cgroup").read_text() if is_of_systemd else ""
        found = worker_process._cgroups_of(process.pid)

    assert found == expected


@pytest.mark.parametrize(
    ("parent", "variable", "is_of_systemd"),
    [
        ("systemd", "INVOCATION_ID", True),
        ("sh", "INVOCATION_ID", False),
        ("systemd", "OTHER", False),
    ],
    ids=["service", "begun-by-a-service", "no-service"],
)
def test_before_systemd_248_a_service_is_known_by_its_parent(
    tmp_path: Path, parent: str, variable: str, is_of_systemd: bool
) -> None:
    """Debian 11 has 247: there the variable with the process id is not set."""
    (tmp_path / parent).symlink_to("/bin/sh")
    begins = f"{variable}=1 {sys.executable} -c 'import signal; signal.pause()' & echo $!; wait"
    without = ["env", "-u", "SYSTEMD_EXEC_PID", "-u", "INVOCATION_ID"]
    command = [*without, str(tmp_path / parent), "-c", begins]
    with killed_at_the_end(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        try:
            words = Path(f"/proc/{pid}/cmdline")
            wait_until(lambda: words.read_bytes().startswith(os.fsencode(sys.executable)))
            expected = Path(f"/proc/{pid}/cgroup").read_text() if is_of_systemd else ""
            found = worker_process._cgroups_of(pid)
        finally:
            os.kill(pid, signal.SIGKILL)

    assert found == expected


@contextmanager
def killed_at_the_end(
    command: Sequence[str], **options: Any
) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a process that does not end by itself, also if what is asked of it fails."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_worker_is_not_stopped_while_the_results_of_a_run_are_being_saved(
    pool: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deployments.drain._POLL_S", 0.05)
    monkeypatch.setenv("TRAINJOB_WORKDIR", str(tmp_path))
    elsewhere = finisher_in(tmp_path / "of-another-worker" / "run-1")
    saving = finisher_in(tmp_path / "run-2")
    worker = worker_of(pool)
    try:
        assert main([pool, "--stop", str(worker.pid), "--timeout", "0"]) == 1
        is_alive = worker.poll() is None
        said = capsys.readouterr().out
        saving.kill()
        saving.wait()

        assert main([pool, "--stop", str(worker.pid)]) == 0
    finally:
        for process in (elsewhere, saving, worker):
            process.kill()
            process.wait()

    assert is_alive
    assert "waits for 1 run: run-2 (its results are being saved)" in said


def test_a_worker_of_another_pool_is_not_stopped_and_nothing_is_paused(
    client: SyncPrefectClient, pool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with worker_of("another") as worker:
        code = main([pool, "--stop", str(worker.pid)])
        is_alive = worker.poll() is None
        worker.kill()

    assert (code, is_alive) == (1, True)
    assert f"prefect worker start --pool {pool}" in capsys.readouterr().err
    assert not client.read_work_pool(pool).is_paused


@pytest.mark.parametrize(
    "pid", [str(os.getpid()), "0", "99999999999999999999"], ids=["another", "none", "too-great"]
)
def test_a_process_that_is_no_worker_is_not_stopped_and_nothing_is_paused(
    client: SyncPrefectClient, pool: str, capsys: pytest.CaptureFixture[str], pid: str
) -> None:
    assert main([pool, "--stop", pid]) == 1

    assert "asked to stop the worker" in capsys.readouterr().err
    assert not client.read_work_pool(pool).is_paused


def test_pools_are_resumed_by_name_only(
    client: SyncPrefectClient, pool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client.update_work_pool(pool, WorkPoolUpdate(is_paused=True))

    with pytest.raises(SystemExit, match="2"):
        main(["--resume"])

    assert "needs the names" in capsys.readouterr().err
    assert client.read_work_pool(pool).is_paused


def test_a_pool_that_is_deleted_meanwhile_is_told_in_a_sentence(
    client: SyncPrefectClient,
    pool: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deployments.drain._known", lambda _client, _wanted: ["deleted"])

    assert main([pool]) == 1

    assert "404" in capsys.readouterr().err


def test_without_a_server_it_says_which_variable_names_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert main([]) == 1

    assert "PREFECT_API_URL is not set" in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_named_without_its_password(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with temporary_settings({PREFECT_API_URL: "http://me:secret@127.0.0.1:1/api"}):
        assert main([]) == 1

    error = capsys.readouterr().err
    assert "127.0.0.1:1/api" in error
    assert "secret" not in error
