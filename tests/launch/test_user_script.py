"""A script runs under the bootstrap as it does under plain Python."""

import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

from trainjob.errors import LaunchError
from trainjob.launch.failure import RankFailed
from trainjob.launch.training import run_training


def failure(launch) -> RankFailed:
    with pytest.raises(RankFailed) as caught:
        run_training(launch)
    return caught.value


def test_the_main_module_is_the_users(make_launch, watch):
    script = """
        import sys
        main = sys.modules["__main__"]
        print(__name__, main.__dict__ is globals(), __file__, __spec__, __package__)
        print(sorted(n for n in globals() if not n.startswith("__")))
    """
    launch = make_launch(script)
    plain = subprocess.run(
        [sys.executable, "train.py"],
        cwd=launch.code_dir,
        capture_output=True,
        text=True,
        check=True,
    )

    assert watch(launch).lines() == plain.stdout.splitlines()


def test_classes_of_the_script_can_be_pickled_even_while_it_leaves(make_launch, watch):
    script = """
        import atexit, pickle, threading

        class Model:
            value = 3

        def check(when):
            print(when, pickle.loads(pickle.dumps(Model())).value)

        def late():
            threading.main_thread().join()
            check("thread")

        if __name__ == "__main__":
            check("script")
            atexit.register(check, "exit")
            threading.Thread(target=late).start()
    """

    assert watch(make_launch(script)).lines() == ["script 3", "thread 3", "exit 3"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_works_by_every_method(make_launch, watch, method):
    script = """
        import multiprocessing, sys

        class Item:
            def __init__(self, n):
                self.n = n

        def square(item):
            return Item(item.n ** 2)

        if __name__ == "__main__":
            with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
                print([item.n for item in pool.map(square, [Item(2), Item(3)])])
    """

    assert watch(make_launch(script, method)).lines() == ["[4, 9]"]


def test_a_data_loader_with_workers_works(make_launch, watch):
    script = """
        import torch
        from torch.utils.data import DataLoader, Dataset

        class Squares(Dataset):
            def __len__(self):
                return 8

            def __getitem__(self, i):
                return torch.tensor(i * i)

        if __name__ == "__main__":
            for method in ("fork", "spawn"):
                loader = DataLoader(Squares(), 4, num_workers=2, multiprocessing_context=method)
                print([batch.tolist() for batch in loader])
    """

    assert watch(make_launch(script)).lines() == ["[[0, 1, 4, 9], [16, 25, 36, 49]]"] * 2


def test_a_compiled_boot_file_runs(make_launch, watch):
    launch = make_launch("import sys\nprint(__name__, sys.argv)")
    source = launch.code_dir / "train.py"
    py_compile.compile(str(source), cfile=str(launch.code_dir / "boot.pyc"))
    source.unlink()
    launch = make_launch(command=("boot.pyc", "x"), is_script=True, code_dir=launch.code_dir)

    assert watch(launch).lines() == ["__main__ ['boot.pyc', 'x']"]


def test_a_file_compiled_by_another_python_is_told(make_launch):
    launch = make_launch(command=("boot.pyc",), is_script=True)
    (launch.code_dir / "boot.pyc").write_bytes(b"\x01\x02\r\n" + bytes(12))

    assert "is compiled for another Python than" in str(failure(launch))


def test_an_exception_shows_the_users_frames_only(make_launch):
    script = """
        import json

        def load(text):
            return json.loads(text)

        print("loading")
        load("{")
    """
    launch = make_launch(script)

    failed = failure(launch)

    message = str(failed).splitlines()
    assert message[0].startswith("rank 0 of 1 failed: json.decoder.JSONDecodeError: Expecting prop")
    assert message[0].endswith("(exit code 1)")
    frames = [line.strip() for line in message if line.strip().startswith("File ")]
    assert [frame.rpartition(" in ")[2] for frame in frames] == ["<module>", "load", "raw_decode"]
    assert message[-3:] == ["last 1 line of rank 0:", "  loading", f"log: {launch.rank_log(0)}"]
    assert "user_script" not in launch.rank_log(0).read_text()
    assert "bootstrap" not in launch.rank_log(0).read_text()
    assert failed.failure.exit_code == 1


def test_the_log_has_what_plain_python_prints(make_launch):
    launch = make_launch("def f():\n    try:\n        1 / 0\n    finally:\n        {}['x']\nf()\n")
    plain = subprocess.run(
        [sys.executable, "train.py"], cwd=launch.code_dir, capture_output=True, check=False
    )

    failed = failure(launch)

    assert launch.rank_log(0).read_bytes() == plain.stderr
    assert failed.failure.traceback.encode() == plain.stderr


def test_an_error_in_the_syntax_names_file_and_line(make_launch):
    launch = make_launch("x = 1\nif x\n    pass\n")

    message = str(failure(launch))

    assert message.startswith("rank 0 of 1 failed: SyntaxError: expected ':' (train.py, line 2)")
    assert 'train.py", line 2' in message
    assert "user_script" not in message
    assert "Traceback" not in message


def test_an_import_that_fails_names_the_module(make_launch):
    message = str(failure(make_launch("import not_there")))

    assert message.startswith(
        "rank 0 of 1 failed: ModuleNotFoundError: No module named 'not_there' (exit code 1)"
    )
    assert message.count("  File ") == 1


def test_a_script_that_is_not_there_is_told(make_launch):
    message = str(failure(make_launch()))

    assert message.startswith("rank 0 of 1 failed: FileNotFoundError: ")
    assert "train.py" in message.partition("\n")[0]


@pytest.mark.parametrize(
    ("leave", "code", "text"),
    [
        ("sys.exit(3)", 3, "sys.exit (exit code 3)"),
        ("sys.exit('bad data')", 1, "bad data (exit code 1)"),
        ("sys.exit(-1)", 255, "sys.exit (exit code 255)"),
        ("raise SystemExit(['x'])", 1, "['x'] (exit code 1)"),
        ("os._exit(4)", 4, "with exit code 4"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt (exit code 130)"),
    ],
)
def test_every_way_to_leave_has_its_exit_code(make_launch, leave, code, text):
    failed = failure(make_launch(f"import os, sys\n{leave}\n"))

    assert failed.failure.exit_code == code
    assert str(failed).partition("\n")[0].endswith(text)


@pytest.mark.parametrize("leave", ["", "sys.exit()", "sys.exit(0)", "os._exit(0)"])
def test_every_good_end_is_one(make_launch, watch, leave):
    assert watch(make_launch(f"import os, sys\n{leave}\n")).result.reason == "finished"


def test_exit_handlers_and_threads_of_a_script_that_fails_still_run(make_launch):
    script = """
        import atexit, threading, time
        atexit.register(print, "exit handler")
        threading.Timer(0.1, print, ["thread"]).start()
        raise ValueError("x")
    """
    launch = make_launch(script)

    failure(launch)

    assert launch.rank_log(0).read_text().splitlines()[-2:] == ["thread", "exit handler"]


def test_a_thread_that_never_ends_does_not_keep_a_failed_script(make_launch, monkeypatch):
    script = """
        import threading
        from trainjob.launch import user_script
        user_script._LEAVE_TIMEOUT_S = 0.3
        threading.Thread(target=threading.Event().wait).start()
        raise ValueError("x")
    """

    assert str(failure(make_launch(script))).startswith("rank 0 of 1 failed: ValueError: x")


def test_a_script_that_ends_with_a_group_open_ends_well(make_launch, watch):
    script = """
        import sys, torch, torch.distributed as dist
        dist.init_process_group("gloo")
        dist.all_reduce(torch.ones(1), async_op=True)
        sys.exit(0)
    """

    assert watch(make_launch(script, world_size=2)).result.reason == "finished"


def test_an_exception_hook_of_the_script_is_used(make_launch):
    launch = make_launch("import sys\nsys.excepthook = lambda *e: print('mine', e[1])\n1 / 0\n")

    failure(launch)

    assert launch.rank_log(0).read_text() == "mine division by zero\n"


def test_trainjob_can_be_imported_where_it_is_not_installed(make_launch, watch):
    script = "import sys, trainjob.progress\nprint(sys.path[-1])"
    launch = make_launch(script, env={"PYTHONNOUSERSITE": "1"})

    assert watch(launch).lines()


@pytest.mark.parametrize("name", ["not-there", "./not-executable"])
def test_a_command_that_cannot_be_started_is_told(make_launch, name):
    launch = make_launch(command=(name,))
    (launch.code_dir / "not-executable").write_text("#!/bin/sh\n")

    with pytest.raises(LaunchError, match=f"asked for the command '{name}', found: "):
        run_training(launch)


def test_the_exit_code_of_a_command_is_its_own(make_launch):
    failed = failure(make_launch(command=("sh", "-c", "echo working; exit 5")))

    assert failed.failure.exit_code == 5
    assert str(failed).startswith("rank 0 of 1 failed with exit code 5\nlast 1 line of rank 0:")


def test_a_program_killed_below_a_command_is_recognised(make_launch):
    failed = failure(make_launch(command=("sh", "-c", "sh -c 'kill -9 $$'; exit $?")))

    assert str(failed).startswith("rank 0 of 1 failed with exit code 137, as after SIGKILL")


def test_a_missing_code_folder_is_told(make_launch):
    launch = make_launch(code_dir=Path("/nonexistent/code"))

    with pytest.raises(LaunchError, match="found no such folder"):
        run_training(launch)
