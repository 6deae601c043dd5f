"""A sandbox shows the ranks their run and programs, and nothing else; real ranks throughout."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.launch.conftest import marked_processes, read_record
from tests.waiting import wait_until
from trainjob.errors import LaunchError, TrainingFailed
from trainjob.launch.environment import rank_environment, search_path
from trainjob.launch.launch import Launch, Mount
from trainjob.launch.sandbox import SHOWN_ENV, sandbox_argv, sandbox_problems
from trainjob.launch.training import Control, run_training

_WHY_NOT = [problem.found for problem in sandbox_problems(search_path(os.environ))]
needs_sandbox = pytest.mark.skipif(bool(_WHY_NOT), reason=" ".join(_WHY_NOT))
ROOT = Path(__file__).parent.parent.parent

LAUNCHERS = [
    pytest.param("single", 1, id="single"),
    pytest.param("torchrun", 2, id="torchrun"),
    pytest.param("mpi", 2, id="mpi", marks=pytest.mark.mpi),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the home of a worker who keeps a secret, and other runs."""
    folder = tmp_path / "home" / "worker"
    folder.mkdir(parents=True)
    (folder / "secret").write_text("my password")
    monkeypatch.setenv("HOME", str(folder))
    other = tmp_path / "runs" / "other" / "outputs"
    other.mkdir(parents=True)
    (other / "model").write_text("of another run")
    return folder


@pytest.fixture
def make_sandboxed(make_launch: Callable[..., Launch], home: Path) -> Callable[..., Launch]:
    """Return a function from a script to a launch in a sandbox with an input and an output."""

    def make(script: str, *args: str, **changes: Any) -> Launch:
        launch = make_launch(script, *args, is_sandboxed=True, **changes)
        run = launch.code_dir.parent
        (run / "data").mkdir()
        (run / "data" / "value").write_text("21")
        mounts = (
            Mount("/tmp", run / "private" / "tmp"),
            Mount(str(home), run / "private" / "home"),
            Mount(str(launch.code_dir), launch.code_dir, is_read_only=True),
            Mount(str(run / "data"), run / "data", is_read_only=True),
            Mount(str(run / "out"), run / "out"),
            Mount(str(launch.log_dir), launch.log_dir),
        )
        return replace(launch, mounts=mounts)

    return make


@needs_sandbox
@pytest.mark.parametrize(("launcher", "world_size"), LAUNCHERS)
def test_ranks_meet_and_write_their_outputs(
    make_sandboxed: Callable[..., Launch],
    watch: Callable[..., Any],
    launcher: str,
    world_size: int,
) -> None:
    script = """
        import os, pathlib
        rank = int(os.environ["RANK"])
        if "TORCHELASTIC_RUN_ID" in os.environ:
            import torch
            import torch.distributed as dist
            dist.init_process_group("gloo")
            total = torch.ones(1)
            dist.all_reduce(total)
            number = int(total)
        elif "PMI_RANK" in os.environ:
            from mpi4py import MPI
            number = MPI.COMM_WORLD.allreduce(1)
        else:
            number = 1
        data = int(pathlib.Path("../data/value").read_text())
        pathlib.Path(f"../out/{rank}").write_text(str(number * data))
        print(number, flush=True)
    """
    launch = make_sandboxed(script, launcher=launcher, world_size=world_size)

    ran = watch(launch)

    for rank in range(world_size):
        assert ran.lines(rank) == [str(world_size)]
        written = launch.code_dir.parent / "out" / str(rank)
        assert written.read_text() == str(21 * world_size)


@needs_sandbox
def test_nothing_of_the_worker_is_there(
    make_sandboxed: Callable[..., Launch],
    watch: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "my secret")
    monkeypatch.setenv("PREFECT_API_KEY", "my secret")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    (tmp_path / "prefect").mkdir()
    flow = os.getpid()
    script = f"""
        import json, os, pathlib, tempfile
        def names(folder):
            return sorted(p.name for p in pathlib.Path(folder).iterdir())
        def error(path):
            try:
                open(path, "rb").read()
            except OSError as caught:
                return type(caught).__name__
        print(json.dumps(dict(
            root=names("/"), home=names("{home}"), test=names("{tmp_path}"),
            runs=names("{tmp_path}/launch-0"), etc=names("/etc"), dev=names("/dev"),
            tmp=tempfile.gettempdir(),
            memory=error("/proc/{flow}/mem"), environment=error("/proc/{flow}/environ"),
            outside=error("/proc/{flow}/root{home}/secret"), env=dict(os.environ),
        )), flush=True)
    """

    seen = watch(make_sandboxed(script)).json()

    assert "secret" not in seen["home"]
    assert set(seen["test"]) == {"home", "launch-0"}
    assert set(seen["runs"]) == {"code", "data", "logs", "out"}
    assert not {"home", "mnt", "opt", "root", "run", "srv", "var"} & set(seen["root"]) - set(
        Path(sys.prefix).parts + Path(sys.base_prefix).parts + ROOT.parts
    )
    assert not {"shadow", "ssh", "sudoers", "prefect"} & set(seen["etc"])
    assert not {name for name in seen["dev"] if name.startswith(("nvidia", "sd", "nvme"))}
    assert seen["tmp"] == "/tmp"
    assert seen["memory"] == seen["environment"] == seen["outside"] == "PermissionError"
    assert not [n for n in seen["env"] if n.startswith(("AWS_", "PREFECT_", "XDG_"))]
    assert "my secret" not in json.dumps(seen["env"])


@needs_sandbox
@pytest.mark.parametrize("place", ["../data/value", "train.py", "new file", "/new", "/usr/new"])
def test_code_inputs_and_the_machine_cannot_be_written(
    make_sandboxed: Callable[..., Launch], place: str
) -> None:
    launch = make_sandboxed(f"open({place!r}, 'w')")
    before = (launch.code_dir / "train.py").read_bytes()

    with pytest.raises(TrainingFailed, match="Read-only file system"):
        run_training(launch)

    assert (launch.code_dir.parent / "data" / "value").read_text() == "21"
    assert (launch.code_dir / "train.py").read_bytes() == before
    assert not Path(place).is_absolute() or not Path(place).exists()


@needs_sandbox
def test_tmp_and_home_are_those_of_the_run(
    make_sandboxed: Callable[..., Launch], watch: Callable[..., Any], home: Path
) -> None:
    script = """
        import pathlib, tempfile
        (pathlib.Path.home() / ".cache").mkdir()
        tempfile.mkstemp(prefix="mine")
        (pathlib.Path("/dev/shm") / "segment").write_bytes(b"x")
        print("done", flush=True)
    """
    launch = make_sandboxed(script)

    assert watch(launch).lines() == ["done"]

    private = launch.code_dir.parent / "private"
    assert (private / "home" / ".cache").is_dir()
    assert list((private / "tmp").glob("mine*"))
    assert [path.name for path in home.iterdir()] == ["secret"]
    assert not Path("/dev/shm/segment").exists()


@needs_sandbox
def test_what_an_administrator_names_is_shown_to_read_and_the_home_in_it_is_not(
    make_sandboxed: Callable[..., Launch],
    watch: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
    tmp_path: Path,
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "license").write_text("licensed")
    other_way = tmp_path / "other way"
    other_way.symlink_to(home.parent)
    shown = [str(tools), str(home.parent), str(other_way), str(home), "nowhere", ""]
    monkeypatch.setenv(SHOWN_ENV, os.pathsep.join(shown))
    script = f"""
        import os
        print(open("{tools}/license").read(), os.listdir("{other_way}/worker"), flush=True)
        print("secret" in os.listdir("{home}"), flush=True)
    """

    assert watch(make_sandboxed(script)).lines() == ["licensed []", "False"]


@needs_sandbox
def test_a_stop_request_reaches_the_ranks(
    make_sandboxed: Callable[..., Launch], run_until: Callable[..., Any]
) -> None:
    script = """
        import os, pathlib
        from trainjob.progress import should_stop
        print("ready", flush=True)
        while not should_stop():
            os.sched_yield()
        pathlib.Path("../out/saved").touch()
    """
    control = Control()
    launch = make_sandboxed(script)

    result = run_until(launch, "ready", control.stop_at_target, control)

    assert result.reason == "target"
    assert (launch.code_dir.parent / "out" / "saved").exists()
    assert not marked_processes(launch)


WAIT = """
    import subprocess, sys, time
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print("ready", flush=True)
    time.sleep(600)
"""


@needs_sandbox
@pytest.mark.parametrize(("launcher", "world_size"), LAUNCHERS)
def test_an_interruption_leaves_no_process(
    make_sandboxed: Callable[..., Launch],
    run_until: Callable[..., Any],
    launcher: str,
    world_size: int,
) -> None:
    launch = make_sandboxed(WAIT, launcher=launcher, world_size=world_size, grace_s=1.0)

    with pytest.raises(KeyboardInterrupt):
        run_until(launch, "ready", lambda: os.kill(os.getpid(), signal.SIGINT))

    assert not marked_processes(launch)


@needs_sandbox
@pytest.mark.parametrize("who", ["supervisor", "bubblewrap", "rank"])
def test_no_process_is_left_whoever_is_killed(
    make_sandboxed: Callable[..., Launch], run_until: Callable[..., Any], who: str
) -> None:
    launch = make_sandboxed(WAIT, grace_s=1.0)

    with pytest.raises(TrainingFailed):
        run_until(launch, "ready", lambda: os.kill(_pid_of(launch, who), signal.SIGKILL))

    wait_until(lambda: not marked_processes(launch))


def _pid_of(launch: Launch, who: str) -> int:
    if who == "rank":
        return int(read_record(launch, "begin-0")["program_pid"])
    word = {"supervisor": "/supervisor.py ", "bubblewrap": "bwrap "}[who]
    return min(pid for pid, command in marked_processes(launch).items() if word in command)


@needs_sandbox
def test_where_a_rank_hangs_is_seen_from_outside(make_sandboxed: Callable[..., Launch]) -> None:
    script = """
        import threading
        def waits_for_ever():
            threading.Event().wait()
        waits_for_ever()
    """

    with pytest.raises(TrainingFailed, match="waits_for_ever"):
        run_training(make_sandboxed(script, stall_s=2.0))


NO_RIGHTS = """
import os, sys
from pathlib import Path
from trainjob.launch.launch import Launch, Mount
from trainjob.launch.training import run_training

root = Path(sys.argv[1])
assert os.getuid() == 1000
(root / "code").mkdir(parents=True)
train = "import os; open('../out/seen', 'w').write(str(os.getuid()))"
(root / "code" / "train.py").write_text(train)
shown = (Mount("/tmp", root / "tmp"), *(Mount(f"{root}/{n}", root / n) for n in ("logs", "out")))
run_training(
    Launch(
        run_id="test-no-rights", launcher="single", world_size=1, program=("train.py",),
        is_script=True, code_dir=root / "code", log_dir=root / "logs", env={}, device="cpu",
        cores=None, auto_stop_s=None, grace_s=5.0, is_sandboxed=True,
        mounts=(*shown, Mount(f"{root}/code", root / "code", is_read_only=True)),
    )
)
"""


@needs_sandbox
def test_a_worker_without_root_has_sandboxes_too(tmp_path: Path) -> None:
    bwrap = str(shutil.which("bwrap"))
    as_person = [bwrap, "--unshare-user", "--uid", "1000", "--gid", "1000"]

    done = subprocess.run(
        [
            *as_person,
            "--dev-bind",
            "/",
            "/",
            "--",
            sys.executable,
            "-c",
            NO_RIGHTS,
            f"{tmp_path}/run",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "out" / "seen").read_text() == "1000"


def test_without_bubblewrap_nothing_is_started(
    make_sandboxed: Callable[..., Launch], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    launch = make_sandboxed("")

    with pytest.raises(LaunchError) as raised:
        run_training(launch)

    assert str(raised.value) == (
        "sandbox: asked for true, found no bubblewrap; install bubblewrap (apt-get install "
        "bubblewrap), which needs no root to run, or write sandbox: false"
    )
    assert not launch.records_dir.exists()


def test_a_machine_that_refuses_sandboxes_is_told_of(tmp_path: Path) -> None:
    tool = tmp_path / "bwrap"
    tool.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    tool.chmod(0o755)

    [problem] = sandbox_problems(str(tmp_path))
    with pytest.raises(LaunchError, match="No permissions"):
        sandbox_argv((), str(tmp_path), folder=tmp_path)

    assert problem.found == (
        "a bubblewrap that may not run here (bwrap: No permissions to create new namespace)"
    )
    assert "sandbox: false" in problem.do


ONCE_BUSY = """#!/bin/sh
[ -e "$0.was-busy" ] && exit 0
touch "$0.was-busy"
exit 1
"""


def test_a_machine_that_was_too_busy_once_is_asked_again(tmp_path: Path) -> None:
    tool = tmp_path / "bwrap"
    tool.write_text(ONCE_BUSY)
    tool.chmod(0o755)

    assert sandbox_problems(str(tmp_path))
    assert sandbox_problems(str(tmp_path)) == []
    tool.with_name("bwrap.was-busy").unlink()
    assert sandbox_problems(str(tmp_path)) == []


@needs_sandbox
def test_a_folder_that_cannot_be_made_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    source = tmp_path / "file" / "folder"

    with pytest.raises(LaunchError, match=r"asked to show .*file/folder.*, found: Not a directory"):
        sandbox_argv((Mount("/data", source),), search_path(os.environ), folder=tmp_path)


def test_variables_that_name_what_a_sandbox_does_not_show_are_not_passed_on(
    make_sandboxed: Callable[..., Launch], home: Path
) -> None:
    shown = {
        "CUDA_HOME": "/usr/local/cuda",
        "HOME": str(home),
        "LD_LIBRARY_PATH": "/scratch/lib:/usr/lib",
        "NCCL_DEBUG": "INFO",
        "TORCH_HOME": f"{home}/torch",
        "TRITON_CACHE_DIR": "/tmp/triton",
    }
    hidden = {
        "PYTHONPYCACHEPREFIX": "/scratch/pycache",
        "TORCHINDUCTOR_CACHE_DIR": "/scratch/inductor",
        "CUDA_CACHE_PATH": "/scratch/cuda",
    }
    given = make_sandboxed("", env={"CUDA_CACHE_PATH": "/scratch/cuda"})

    environment = rank_environment(make_sandboxed(""), shown | hidden)

    assert shown.items() <= environment.items()
    assert not hidden.keys() & environment.keys()
    assert rank_environment(given, hidden)["CUDA_CACHE_PATH"] == "/scratch/cuda"
    assert hidden.items() <= rank_environment(replace(given, is_sandboxed=False), hidden).items()
