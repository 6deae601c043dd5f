from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainjob.errors import LaunchError
from trainjob.job import TrainingJob
from trainjob.launch import mpi, preflight
from trainjob.launch.mpi import Mpirun, NoMpirun, find_mpirun
from trainjob.launch.preflight import launch_problems
from trainjob.launch.training import run_training
from trainjob.profiles import PROFILES

SCRIPT = {"kind": "script", "code": {"url": "/code"}, "boot_file": "train.py"}
COMMAND = {"kind": "command", "code": {"url": "/code"}, "command": "sh start.sh"}


def job(**keys: Any) -> TrainingJob:
    return TrainingJob.parse({"name": "test", "algorithm": SCRIPT} | keys)


def messages(tested: TrainingJob) -> list[str]:
    return [str(problem) for problem in launch_problems(tested)]


@pytest.fixture
def only_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, and a Python beside which lies nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(mpi, "_BESIDE_PYTHON", str(folder))
    return folder


def put_mpirun(folder: Path, name: str, version: str) -> str:
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(0o755)
    return str(program)


def test_a_job_that_fits_has_no_problems():
    assert messages(job(resources={"flavor": "1c1g"})) == []


@pytest.mark.mpi
def test_the_mpirun_beside_this_python_fits_mpi4py():
    mpirun = find_mpirun()

    assert isinstance(mpirun, Mpirun)
    assert messages(job(launcher="mpi", resources={"processes_per_node": 2})) == []


def test_torchrun_without_torch_is_told(monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)

    assert messages(job(launcher="torchrun")) == [
        "launcher: asked for torchrun, found no torch in this Python; "
        "install it with pip install torch"
    ]


def test_mpi_without_mpi4py_names_the_extra(monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)

    assert messages(job(launcher="mpi")) == [
        "launcher: asked for mpi, found no mpi4py in this Python; install it in "
        "the checkout of trainjob: pip install -e '.[mpi]'"
    ]


def test_msrun_without_mindspore_names_the_extra(monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)

    assert messages(job(launcher="msrun")) == [
        "launcher: asked for msrun, found no mindspore in this Python; install it in "
        "the checkout of trainjob: pip install -e '.[msrun]'"
    ]


def test_a_command_needs_mpirun_but_not_mpi4py(monkeypatch, only_on_path):
    put_mpirun(only_on_path, "mpirun", "HYDRA build details")
    for module in (preflight, mpi):
        monkeypatch.setattr(module, "find_spec", lambda name: None)

    assert messages(job(algorithm=COMMAND, launcher="mpi")) == []


@pytest.mark.mpi
def test_a_missing_mpirun_is_told(only_on_path):
    found = messages(job(launcher="mpi"))

    assert len(found) == 1
    assert found[0].startswith("launcher: asked for mpi, found no mpirun on PATH; install both")


@pytest.mark.mpi
def test_an_mpirun_of_another_mpi_is_refused(only_on_path, make_launch):
    path = put_mpirun(only_on_path, "mpirun", "mpirun (Open MPI) 5.0.8")

    found = messages(job(launcher="mpi"))

    assert len(found) == 1
    assert f"found mpi4py built on mpich but only '{path}' of openmpi" in found[0]
    with pytest.raises(LaunchError, match="built on mpich but only"):
        run_training(make_launch("", launcher="mpi", world_size=2))


@pytest.mark.mpi
def test_of_two_mpiruns_the_one_of_mpi4py_is_taken(only_on_path):
    put_mpirun(only_on_path, "mpirun", "mpirun (Open MPI) 5.0.8")
    fits = put_mpirun(only_on_path, "mpirun.mpich", "HYDRA build details")

    assert find_mpirun() == Mpirun(fits, "mpich")


@pytest.mark.mpi
def test_an_mpi4py_that_did_not_answer_is_asked_again(monkeypatch):
    mpi._mpi4py_family.cache_clear()
    with monkeypatch.context() as busy_machine:
        busy_machine.setattr(mpi, "_ASK_TIMEOUT_S", 0.0)

        assert messages(job(launcher="mpi")) == [
            "launcher: asked for mpi, found mpi4py that does not say which MPI it is built on "
            "(no answer within 0 s); see what keeps this machine busy, and try again"
        ]
    assert isinstance(find_mpirun(), Mpirun)


@pytest.mark.mpi
def test_an_mpi4py_that_could_not_load_its_mpi_is_asked_again(monkeypatch):
    mpi._mpi4py_family.cache_clear()
    with monkeypatch.context() as without_library:
        without_library.setattr(mpi, "_ASK_MPI4PY", "raise RuntimeError('cannot load MPI library')")

        [found] = messages(job(launcher="mpi"))
    assert "an MPI that it can load (RuntimeError: cannot load MPI library); install both" in found
    assert isinstance(find_mpirun(), Mpirun)


def test_a_program_that_only_has_the_name_is_no_mpirun(only_on_path):
    put_mpirun(only_on_path, "mpirun", "mpirun: I do something else")

    assert isinstance(find_mpirun(), NoMpirun)


def test_devices_that_are_not_there_are_told(monkeypatch):
    monkeypatch.setattr(preflight, "num_devices", lambda device, environ: 0)

    assert messages(job(resources={"device": "npu"}, logs={"url": "/logs"})) == [
        "resources.device: asked for npu, found none on this machine; "
        "use device cpu, or check the driver and ASCEND_RT_VISIBLE_DEVICES"
    ]


def test_more_processes_than_devices_are_refused(monkeypatch):
    monkeypatch.setattr(preflight, "num_devices", lambda device, environ: 2)
    asked = {"device": "cuda", "processes_per_node": 4}

    assert messages(job(launcher="torchrun", resources=asked)) == [
        "resources.processes_per_node: asked for 4 processes on cuda, found 2 cuda devices; "
        "set processes_per_node to at most 2"
    ]


def test_devices_that_the_job_hides_do_not_count():
    tested = job(resources={"device": "cuda"}, env={"CUDA_VISIBLE_DEVICES": ""})

    assert messages(tested)[0].startswith("resources.device: asked for cuda, found none")


def test_a_flavor_bigger_than_the_machine_is_refused(monkeypatch):
    monkeypatch.setattr(preflight, "num_cores", lambda: 2)

    found = messages(job(resources={"flavor": "4096c1g"}))

    assert len(found) == 1
    assert found[0].startswith("resources.flavor: asked for '4096c1g', found ")
    assert "found 2 cores and" in found[0]
    assert messages(job(resources={"flavor": "1c999999g"}))


def test_a_machine_sold_with_this_memory_shows_a_little_less(monkeypatch):
    monkeypatch.setattr(preflight, "memory_bytes", lambda: int(62.5 * 2**30))

    assert messages(job(resources={"flavor": "1c64g"})) == []


def test_a_flavor_with_more_cards_than_the_machine_is_refused(monkeypatch):
    monkeypatch.setattr(preflight, "num_devices", lambda device, environ: 1)

    assert messages(job(resources={"flavor": "1c1g V100*2"})) == [
        "resources.flavor: asked for '1c1g V100*2', found 1 cuda device on this machine; "
        "use a smaller flavor, or a bigger machine"
    ]
    assert messages(job(resources={"flavor": "1c1g V100*1"})) == []


def test_a_flavor_with_a_larger_disk_than_the_machine_is_refused(tmp_path):
    small = {"cores": 1, "memory_gib": 1, "disk_gib": 1}
    found = messages(job(resources={"flavor": small | {"disk_gib": 10**9}}))

    assert len(found) == 1
    assert f"on the disk of {str(tmp_path / 'runs')!r} on this machine" in found[0]
    assert messages(job(resources={"flavor": small})) == []


def test_all_problems_are_told_at_once(monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    monkeypatch.setattr(preflight, "num_devices", lambda device, environ: 0)

    found = messages(job(launcher="torchrun", resources={"device": "cuda", "flavor": "4096c1g"}))

    assert [text.partition(":")[0] for text in found] == [
        "launcher",
        "resources.device",
        "resources.flavor",
    ]


def test_a_folder_of_the_profile_that_cannot_be_had_is_told(only_on_path, monkeypatch):
    taken = only_on_path.parent / "taken"
    taken.mkdir()
    openi = replace(PROFILES["openi-gpu"], code=str(taken))
    monkeypatch.setitem(PROFILES, "openi-gpu", openi)

    assert messages(job(profile="openi-gpu")) == [
        f"profile: asked for the folder {taken}, found no bubblewrap, and something else there; "
        "install bubblewrap (apt-get install bubblewrap), which needs no root to run"
    ]


def test_a_machine_that_cannot_hold_ranks_to_their_flavor_warns(monkeypatch, tmp_path):
    monkeypatch.setattr(preflight, "num_cores", lambda: 4)
    monkeypatch.setattr(preflight, "can_choose_cores", lambda count: False)
    monkeypatch.setenv("TRAINJOB_CGROUP", str(tmp_path))

    found = launch_problems(job(resources={"flavor": "1c1g"}))

    assert [(problem.id, problem.level) for problem in found] == [
        ("limits-cores", "warning"),
        ("limits-memory", "warning"),
    ]
    assert "asked for 1 of 4 cores, found that processes here may not choose" in str(found[0])
    assert f"a cgroup of 1 GiB below {str(tmp_path)!r}, found none there" in str(found[1])


def test_a_job_without_a_flavor_needs_no_limits(monkeypatch, tmp_path):
    monkeypatch.setattr(preflight, "can_choose_cores", lambda count: False)
    monkeypatch.setenv("TRAINJOB_CGROUP", str(tmp_path))

    assert messages(job()) == []
