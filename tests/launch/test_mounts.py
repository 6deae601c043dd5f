"""Absolute folders for the ranks: mounts with bubblewrap, links without; real ranks in both."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.launch.conftest import marked_processes, read_record
from tests.waiting import wait_until
from trainjob.errors import LaunchError, TrainingFailed
from trainjob.launch.environment import search_path
from trainjob.launch.launch import Launch, Mount
from trainjob.launch.mounts import find_bwrap, mount_problems, mounted
from trainjob.launch.training import Control, run_training

needs_bwrap = pytest.mark.skipif(
    find_bwrap(search_path(os.environ))[0] is None, reason=find_bwrap(search_path(os.environ))[1]
)
ROOT = Path(__file__).parent.parent.parent
FOLDER = "/trainjob-test/dataset"  # a path that no machine has; a mount leaves no trace of it
COPY = """
    import pathlib, sys
    source, target = map(pathlib.Path, sys.argv[1:])
    (target / "result").write_text((source / "value").read_text() * 2)
"""
WAIT = """
    import os, pathlib, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    assert pathlib.Path("/trainjob-test/dataset").is_dir()
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def without_bwrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have bubblewrap looked for where it is not."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "env"):
        (tools / tool).symlink_to(shutil.which(tool) or "")
    monkeypatch.setenv("PATH", str(tools))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "1" / "inputs" / "data"
    folder.mkdir(parents=True)
    (folder / "value").write_text("21")
    return folder


@needs_bwrap
@pytest.mark.parametrize(
    ("launcher", "world_size"),
    [
        pytest.param("single", 1, id="single"),
        pytest.param("torchrun", 2, id="torchrun"),
        pytest.param("mpi", 2, id="mpi", marks=pytest.mark.mpi),
    ],
)
def test_every_rank_sees_its_folders_and_the_machine_does_not(
    make_launch: Callable[..., Launch],
    watch: Callable[..., Any],
    source: Path,
    launcher: str,
    world_size: int,
) -> None:
    script = f"""
        import os, pathlib
        rank = os.environ["RANK"]
        text = pathlib.Path("{FOLDER}/value").read_text()
        pathlib.Path("/trainjob-test/model/cache", rank).write_text(text)
        print(text, pathlib.Path("/etc/passwd").exists(), os.path.islink("/bin"), flush=True)
    """
    out = source.parent / "out"
    launch = make_launch(
        script,
        launcher=launcher,
        world_size=world_size,
        mounts=(
            Mount(FOLDER, source, is_read_only=True),
            Mount("/trainjob-test/model", source.parent / "scratch"),
            Mount("/trainjob-test/model/cache", out),
        ),
    )

    ran = watch(launch)

    for rank in range(world_size):
        assert ran.lines(rank) == [f"21 True {Path('/bin').is_symlink()}"]
        assert (out / str(rank)).read_text() == "21"
    assert not Path("/trainjob-test").exists()


NO_RIGHTS = """
import os, sys
from pathlib import Path
from trainjob.launch.launch import Launch, Mount
from trainjob.launch.training import run_training

root, source, folder = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
status = Path("/proc/self/status").read_text()
assert os.getuid() == 1000 and "CapEff:\\t0000000000000000" in status, status
(root / "code").mkdir(parents=True)
train = f"import os; open('{folder}/seen', 'w').write(str(os.getuid()))"
(root / "code" / "train.py").write_text(train)
run_training(
    Launch(
        run_id="test-no-rights", launcher="single", world_size=1, program=("train.py",),
        is_script=True, code_dir=root / "code", log_dir=root / "logs", env={}, device="cpu",
        cores=None, auto_stop_s=None, grace_s=5.0, mounts=(Mount(folder, source),),
    )
)
"""


@needs_bwrap
def test_a_worker_without_root_shows_its_ranks_the_folders_too(
    source: Path, tmp_path: Path
) -> None:
    bwrap, _ = find_bwrap(search_path(os.environ))
    as_person = [str(bwrap), "--unshare-user", "--uid", "1000", "--gid", "1000"]
    script = [sys.executable, "-c", NO_RIGHTS, str(tmp_path / "run"), str(source), FOLDER]

    done = subprocess.run(
        [*as_person, "--dev-bind", "/", "/", "--", *script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert (source / "seen").read_text() == "1000"
    assert not Path("/trainjob-test").exists()


@needs_bwrap
def test_a_rank_cannot_write_what_other_runs_share(
    make_launch: Callable[..., Launch], source: Path
) -> None:
    script = f"open('{FOLDER}/value', 'w')"

    with pytest.raises(TrainingFailed, match="Read-only file system"):
        run_training(make_launch(script, mounts=(Mount(FOLDER, source, is_read_only=True),)))

    assert (source / "value").read_text() == "21"


@needs_bwrap
def test_a_folder_of_the_machine_is_hidden_and_its_neighbours_are_not(
    make_launch: Callable[..., Launch], watch: Callable[..., Any], source: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    (home / "data" / "old").touch()
    (home / "neighbour").mkdir()
    (home / "link").symlink_to("neighbour")
    (tmp_path / "other name").symlink_to(home)
    script = f"""
        import os
        print(sorted(os.listdir("{home}")), os.listdir("{home}/data"), os.readlink("{home}/link"))
    """

    ran = watch(make_launch(script, mounts=(Mount(f"{tmp_path}/other name/data", source),)))

    assert ran.lines() == ["['data', 'link', 'neighbour'] ['value'] neighbour"]
    assert [p.name for p in (home / "data").iterdir()] == ["old"]


@needs_bwrap
def test_a_folder_among_too_many_others_is_refused_unless_it_is_there(
    make_launch: Callable[..., Launch], watch: Callable[..., Any], source: Path, tmp_path: Path
) -> None:
    crowd = tmp_path / "crowd"
    crowd.mkdir()
    for number in range(3100):
        (crowd / str(number)).touch()
    mounts = (Mount(f"{crowd}/data", source),)

    with pytest.raises(LaunchError, match=f"{crowd}/data, found too much .* on the machine, empty"):
        watch(make_launch("", mounts=mounts))
    (crowd / "data").mkdir()
    ran = watch(make_launch(f"import os; print(os.listdir('{crowd}/data'))", mounts=mounts))

    assert ran.lines() == ["['value']"]


@needs_bwrap
def test_a_stop_request_reaches_the_ranks_behind_the_mounts(
    make_launch: Callable[..., Launch], run_until: Callable[..., Any], source: Path
) -> None:
    script = f"""
        import pathlib, time
        from trainjob.progress import should_stop
        print("ready", flush=True)
        while not should_stop():
            time.sleep(0.01)
        pathlib.Path("{FOLDER}/saved").touch()
    """
    control = Control()
    launch = make_launch(script, world_size=2, mounts=(Mount(FOLDER, source),))

    result = run_until(launch, "ready", control.stop_at_target, control)

    assert result.reason == "target"
    assert (source / "saved").exists()
    assert not marked_processes(launch)


@needs_bwrap
@pytest.mark.parametrize(
    ("who", "world_size"), [("supervisor", 1), ("bubblewrap", 1), ("rank", 1), ("rank", 2)]
)
def test_no_process_is_left_whoever_is_killed(
    make_launch: Callable[..., Launch],
    run_until: Callable[..., Any],
    source: Path,
    who: str,
    world_size: int,
) -> None:
    launch = make_launch(WAIT, world_size=world_size, mounts=(Mount(FOLDER, source),), grace_s=1.0)
    killed = []

    def kill() -> None:
        killed.append(_pid_of(launch, who))
        os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(TrainingFailed):
        run_until(launch, "ready", kill)

    wait_until(lambda: not marked_processes(launch))
    assert killed


def _pid_of(launch: Launch, who: str) -> int:
    if who == "rank":
        wait_until((launch.records_dir / "begin-0.json").exists)  # it may be rank 1 that is ready
        return int(read_record(launch, "begin-0")["program_pid"])
    word = {"supervisor": "/supervisor.py ", "bubblewrap": "bwrap "}[who]
    return min(pid for pid, command in marked_processes(launch).items() if word in command)


@needs_bwrap
def test_an_exit_code_comes_through(make_launch: Callable[..., Launch], source: Path) -> None:
    launch = make_launch("raise SystemExit(3)", mounts=(Mount(FOLDER, source),))

    with pytest.raises(TrainingFailed, match="exit code 3"):
        run_training(launch)


@pytest.mark.usefixtures("without_bwrap")
def test_links_are_there_while_the_training_runs_and_gone_after_it(
    make_launch: Callable[..., Launch], source: Path, tmp_path: Path
) -> None:
    data, model = tmp_path / "abs" / "dataset", tmp_path / "abs" / "cache" / "output"
    shared = (Mount(str(data), source), Mount(str(model.parent), tmp_path / "scratch"))
    out = Mount(str(model), tmp_path / "out")

    run_training(make_launch(COPY, str(data), str(model), mounts=(*shared, out)))

    assert (tmp_path / "out" / "result").read_text() == "2121"
    assert not (tmp_path / "abs").exists()
    assert not list((tmp_path / "scratch").iterdir())
    assert (source / "value").exists()


@pytest.mark.usefixtures("without_bwrap")
def test_links_are_removed_when_the_training_fails(
    make_launch: Callable[..., Launch], source: Path, tmp_path: Path
) -> None:
    (tmp_path / "abs").mkdir()

    with pytest.raises(TrainingFailed):
        run_training(make_launch("1/0", mounts=(Mount(f"{tmp_path}/abs/a/b", source),)))

    assert not list((tmp_path / "abs").iterdir())


@pytest.mark.usefixtures("without_bwrap")
@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_what_is_there_is_never_replaced(what: str, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "dataset"
    if what == "folder":
        target.mkdir()
    elif what == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "elsewhere")
    before = target.lstat().st_ino

    with pytest.raises(LaunchError) as raised, mounted((Mount(str(target), source),), "/nowhere"):
        pytest.fail("there was nothing to mount")

    assert str(raised.value).startswith(
        f"profile: asked for the folder {target}, found no bubblewrap, and something else there; "
        "install bubblewrap"
    )
    assert target.lstat().st_ino == before


@pytest.mark.usefixtures("without_bwrap")
def test_of_two_runs_at_once_the_second_is_refused_and_the_first_goes_on(
    source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "abs" / "dataset"
    other = tmp_path / "runs" / "2" / "inputs" / "data"

    with mounted((Mount(str(target), source),), "/nowhere"):
        with (
            pytest.raises(LaunchError) as raised,
            mounted((Mount(f"{target}2", other), Mount(str(target), other)), "/nowhere"),
        ):
            pytest.fail("two runs had the same folder")

        assert target.readlink() == source
        assert [p.name for p in target.parent.iterdir()] == ["dataset"]

    assert not target.parent.exists()
    assert str(raised.value).startswith(
        f"asked for the folder {target}, found it in use by a run as {str(source)!r}; wait until "
        "it has ended, remove the link if it has, or install bubblewrap"
    )


@pytest.mark.usefixtures("without_bwrap")
def test_nothing_is_left_of_folders_that_could_not_all_be_made(
    source: Path, tmp_path: Path
) -> None:
    too_long = f"{tmp_path}/abs/deep/{'n' * 300}"  # for any file system
    both = (Mount(f"{tmp_path}/abs/dataset", source), Mount(too_long, source))

    with pytest.raises(LaunchError, match="File name too long"), mounted(both, "/nowhere"):
        pytest.fail("a name of 300 characters was made")

    assert not (tmp_path / "abs").exists()


@pytest.mark.usefixtures("without_bwrap")
def test_a_link_that_a_killed_process_of_the_run_left_is_taken_over(
    source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "dataset"
    target.symlink_to(source)

    assert not mount_problems((Mount(str(target), source),), "/nowhere")
    with mounted((Mount(str(target), source),), "/nowhere") as words:
        assert words == []
        assert target.readlink() == source

    assert not target.is_symlink()


def test_a_path_that_cannot_be_made_is_told_before_the_run(source: Path) -> None:
    above = source / "value"
    [problem] = mount_problems((Mount(f"{above}/dataset", source),), "/nowhere")

    assert str(problem).startswith(
        f"profile: asked for the folder {above}/dataset, found no bubblewrap, and no right to make "
        f"it in {str(above)!r}; install bubblewrap"
    )


def test_a_bubblewrap_that_may_not_run_here_is_not_used(tmp_path: Path, source: Path) -> None:
    tool = tmp_path / "bwrap"
    tool.write_text("#!/bin/sh\necho 'bwrap: no permission' >&2\nexit 1\n")
    tool.chmod(0o755)

    [problem] = mount_problems((Mount(f"{source}/value/data", source),), str(tmp_path))

    assert problem.found.startswith("a bubblewrap that may not run here (bwrap: no permission)")


def test_a_bubblewrap_that_failed_once_is_tried_again(tmp_path: Path) -> None:
    tool = tmp_path / "bwrap"
    tool.write_text('#!/bin/sh\n[ -e "$0.tried" ] && exit 0\ntouch "$0.tried"\nexit 1\n')
    tool.chmod(0o755)

    assert find_bwrap(str(tmp_path))[0] is None
    assert find_bwrap(str(tmp_path)) == (str(tool), "")
