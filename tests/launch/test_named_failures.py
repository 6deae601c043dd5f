"""Failures that are provoked for real get their name from the catalogue."""

import subprocess

import pytest

from tests.launch.conftest import marked_processes
from trainjob.catalogue import Signs, find_rule
from trainjob.failure_card import card_text
from trainjob.launch.failure import Explained
from trainjob.launch.training import run_training


def failure(launch) -> Explained:
    with pytest.raises(Explained) as caught:
        run_training(launch)
    assert not marked_processes(launch)
    return caught.value


NAMED = [
    ("import nowhere_to_be_found", "module not found", False),
    ("from os import nothing_like_it", "cannot import name", False),
    ("open('/nowhere/data.csv')", "file not found", False),
    ("open('/dev/full', 'w').write('x' * 10**6)", "no space left on device", False),
    ("open('/proc/sys/kernel/osrelease', 'w')", "permission denied", False),
    ("bytearray(10**15)", "out of memory", False),
    (
        "import argparse; argparse.Namespace(epoch_size=1).batch_size",
        "argument not declared",
        False,
    ),
    (
        "import argparse; argparse.ArgumentParser().parse_args(['--data_url', 'x'])",
        "wrong argument",
        False,
    ),
    ("compile('def f(:', 'model.py', 'exec')", "syntax error", False),
    ("def f(): f()\nf()", "recursion too deep", False),
    ("import pickle; pickle.loads(b'version https://git-lfs')", "Git LFS pointer instead", False),
    ("import json; json.loads('')", "cannot be parsed", False),
    ("b'\\xff'.decode()", "text in another encoding", False),
    ("import socket; socket.getaddrinfo('nowhere.invalid', 80)", "no network for the script", True),
    (
        "import socket as s\na, b = s.socket(), s.socket()\na.bind(('127.0.0.1', 0))\na.listen()\n"
        "b.bind(a.getsockname())",
        "port in use",
        True,
    ),
    (
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (16, 16))\n"
        "files = [open('/dev/null') for _ in range(20)]",
        "too many open files",
        False,
    ),
    (
        "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (9999, 9999))\n"
        "open('big', 'w').write('x' * 10**6)",
        "file too large",
        False,
    ),
    (
        "raise ExceptionGroup('errors in a TaskGroup', [ConnectionResetError(104, 'reset')])",
        "connection lost",
        True,
    ),
    (
        "try:\n    open('/nowhere')\nexcept OSError as e:\n    raise ValueError('x') from e",
        "file not found",
        False,
    ),
    ("raise SystemExit('Loss is nan, stopping training')", "NaN or infinite loss", False),
    ("import os; os.kill(os.getpid(), 15)", "stopped from outside", True),
    ("import os; os.kill(os.getpid(), 9)", "killed without a trace", True),
    ("import os; os.abort()", "aborted", True),
    ("import ctypes; ctypes.string_at(0)", "segmentation fault", True),
    ("import os; os.kill(os.getpid(), 4)", "illegal instruction", False),
    ("import os; os.kill(os.getpid(), 7)", "bus error", False),
]


@pytest.mark.parametrize(("script", "name", "restart"), NAMED)
def test_what_really_happens_gets_its_name(make_launch, script, name, restart):
    failed = failure(make_launch(script))

    assert failed.failure.rule is not None, str(failed)
    assert failed.failure.rule.name.startswith(name)
    assert failed.restart is restart


def test_what_torch_says_gets_its_name(make_launch):
    """All in one rank, since it takes seconds to import torch."""
    script = """
        import torch, traceback
        from torch.nn import Linear
        from torch.nn.functional import cross_entropy
        torch.save(torch.ones(1000), "a.pt")
        with open("a.pt", "r+b") as file:
            file.truncate(500)
        with open("b.pt", "w") as file:
            file.write("version https://git-lfs.github.com/spec/v1")
        for do in (
            lambda: Linear(3, 4)(torch.ones(2, 5)),
            lambda: Linear(3, 4)(torch.ones(2, 3, dtype=torch.double)),
            lambda: Linear(3, 4).load_state_dict({"weight": torch.ones(2, 2)}),
            lambda: cross_entropy(torch.ones(1, 10), torch.tensor([10])),
            lambda: torch.ones(1).cuda(),
            lambda: torch.empty(10**15),
            lambda: torch.load("a.pt"),
            lambda: torch.load("b.pt"),
            lambda: torch.save(torch.ones(10**5), "/dev/full"),
            lambda: torch.ones(2).sum().backward(),
            lambda: torch.distributed.all_reduce(torch.ones(1)),
            lambda: torch.utils.data.DataLoader([], shuffle=True),
            lambda: torch.distributed.init_process_group("gloo"),
        ):
            try:
                do()
            except Exception as error:
                print("".join(traceback.format_exception_only(error)).replace("\\n", " "))
    """
    launch = make_launch(script, env={"GLOO_SOCKET_IFNAME": "nowhere0"})

    run_training(launch)

    lines = launch.rank_log(0).read_text().splitlines()
    named = [find_rule(Signs("exception", (line,))) for line in lines if "Error" in line]
    assert [rule and rule.name for rule in named] == [
        "shapes do not match",
        "data types do not match",
        "checkpoint does not fit the model",
        "index out of range",
        "torch without CUDA",
        "out of memory",
        "damaged file",
        "Git LFS pointer instead of data",
        "no space left on device",
        "no gradient",
        "no distributed environment",
        "dataset empty",
        "network interface not found",
    ]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("no_such_program --x", "command not found"),
        ("printf 'set -e\\r\\ncd /\\r\\n' > run.sh; sh run.sh", "Windows line ends"),
        ("python nowhere.py", "file not found"),
        ("python -c 'import nowhere_to_be_found'", "module not found"),
        ("kill -9 $$", "killed without a trace"),
        (
            "echo \"not used: No module named 'apex'\"; "
            "python -c 'raise RuntimeError(\"gloo: Connection closed by peer\")'",
            "connection to another rank lost",
        ),
    ],
)
def test_what_a_command_says_last_names_its_failure(make_launch, command, name):
    failed = failure(make_launch(command=("sh", "-c", command)))

    assert failed.failure.rule is not None, str(failed)
    assert failed.failure.rule.name.startswith(name)


def test_a_failure_is_told_on_one_screen(make_launch):
    script = "for i in range(100): print('step', i, 'y' * 300)\nimport nowhere_to_be_found\n"
    launch = make_launch(script, world_size=2, attempt=1)

    card = card_text(failure(launch).failure, 100)

    assert len(card.split("\n")) <= 45
    for text in (
        "ModuleNotFoundError",
        "module not found: ",
        "what to do: ",
        "attempt 2",
        "step 99",
    ):
        assert text in card
    assert str(launch.log_dir) in card


def test_a_rank_that_fills_its_disk_is_named_with_its_traceback(make_launch, tmp_path):
    """The rank's log and its record of the error are on the disk that it fills."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        script = "print('x' * 2**22)\n"
        failed = failure(make_launch(script, log_dir=disk / "logs"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)

    assert failed.failure.rule is not None, str(failed)
    assert failed.failure.rule.name == "no space left on device"
    assert any("free" in line for line in failed.failure.evidence)
    no_space = "OSError: [Errno 28] No space left on device"
    assert failed.failure.headline == f"rank 0 of 1 failed: {no_space} (exit code 1)"
    assert "print('x' * 2**22)" in failed.failure.traceback
