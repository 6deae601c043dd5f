import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from trainjob.launch.environment import rank_environment
from trainjob.launch.machine import num_cores

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "aws-secret",
    "PREFECT_API_KEY": "prefect-secret",
    "GITHUB_TOKEN": "token-secret",
    "HF_TOKEN": "hf-secret",
    "HTTPS_PROXY": "http://me:proxy-secret@proxy:1",
    "MY_PATH": "my-secret",
    "PATHS": "paths-secret",
    "TRAINJOB_WORKDIR": "/somewhere",
}


def test_python_in_a_command_is_the_python_of_the_run(make_launch):
    own = str(Path(sys.executable).parent)

    assert rank_environment(make_launch(), {"PATH": "/bin"})["PATH"] == f"{own}:/bin"
    assert rank_environment(make_launch(), {"PATH": f"/bin:{own}"})["PATH"] == f"{own}:/bin"
    assert rank_environment(make_launch(env={"PATH": "/x"}), {"PATH": "/bin"})["PATH"] == "/x"


def test_nothing_of_the_worker_gets_through_but_what_is_listed(make_launch):
    machine = {
        "HOME": "/home/me",
        "LC_ALL": "C.UTF-8",
        "LD_LIBRARY_PATH": "/usr/local/cuda/lib64",
        "CUDA_HOME": "/usr/local/cuda",
        "NCCL_DEBUG": "INFO",
        "ASCEND_HOME_PATH": "/usr/local/Ascend",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "http_proxy": "http://proxy:3128",
        "NO_PROXY": "localhost",
        "HF_HOME": "/data/hf",
    }

    environment = rank_environment(make_launch(), machine | SECRETS)

    assert machine.items() <= environment.items()
    assert not SECRETS.keys() & environment.keys()


def test_the_jobs_own_variables_win_over_the_workers(make_launch):
    launch = make_launch(env={"LANG": "de_DE.UTF-8", "DATA_URL": "/inputs/data", "NOTE": "a\nb"})

    environment = rank_environment(launch, {"LANG": "C"})

    assert environment["LANG"] == "de_DE.UTF-8"
    assert environment["DATA_URL"] == "/inputs/data"
    assert environment["NOTE"] == "a\nb"


@pytest.mark.parametrize(
    ("cores", "world_size", "threads"), [(8, 2, "4"), (8, 3, "2"), (2, 4, "1"), (1, 1, "1")]
)
def test_cores_are_shared_out_to_the_ranks_as_threads(make_launch, cores, world_size, threads):
    launch = make_launch(cores=cores, world_size=world_size)

    assert rank_environment(launch, {})["OMP_NUM_THREADS"] == threads


def test_without_a_flavor_all_cores_of_the_machine_are_shared(make_launch):
    assert rank_environment(make_launch(), {})["OMP_NUM_THREADS"] == str(num_cores())


def test_threads_are_the_users_if_the_job_says_so_and_never_the_workers(make_launch):
    worker = {"OMP_NUM_THREADS": "64"}

    chosen = rank_environment(make_launch(cores=4, env={"OMP_NUM_THREADS": "3"}), worker)
    computed = rank_environment(make_launch(cores=4), worker)

    assert chosen["OMP_NUM_THREADS"] == "3"
    assert computed["OMP_NUM_THREADS"] == "4"


def test_a_cpu_job_sees_no_accelerator(make_launch):
    environment = rank_environment(make_launch(device="cpu"), {"CUDA_VISIBLE_DEVICES": "0,1"})

    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["ASCEND_RT_VISIBLE_DEVICES"] == ""


def test_a_cuda_job_sees_the_accelerators_of_the_worker(make_launch):
    environment = rank_environment(make_launch(device="cuda"), {"CUDA_VISIBLE_DEVICES": "2,3"})

    assert environment["CUDA_VISIBLE_DEVICES"] == "2,3"


@pytest.mark.parametrize(("device", "autoload"), [("cpu", "0"), ("cuda", "0"), ("npu", None)])
def test_torch_loads_foreign_backends_only_on_npu(make_launch, device, autoload):
    environment = rank_environment(make_launch(device=device), {})

    assert environment.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == autoload


def test_single_and_mpi_get_an_address_and_torchrun_finds_its_own(make_launch):
    single = rank_environment(make_launch(), {}, port=23456)
    mpi = rank_environment(make_launch(launcher="mpi", world_size=2), {}, port=23456)
    torchrun = rank_environment(make_launch(launcher="torchrun", world_size=2), {}, port=23456)

    assert (single["MASTER_ADDR"], single["MASTER_PORT"]) == ("127.0.0.1", "23456")
    assert (mpi["MASTER_ADDR"], mpi["MASTER_PORT"]) == ("127.0.0.1", "23456")
    assert not {"MASTER_ADDR", "MASTER_PORT"} & torchrun.keys()
    assert torchrun["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


def test_every_process_carries_the_run_mark_and_knows_how_it_is_asked_to_stop(make_launch):
    launch = replace(make_launch(), run_id="run-7")

    environment = rank_environment(launch, os.environ)

    assert environment["TRAINJOB_RUN_ID"] == "run-7"
    assert environment["TRAINJOB_STOP_FILE"] == str(launch.stop_file)
