"""What a stack says of a rank, for the libraries and devices that are not on this machine too."""

from pathlib import Path
from typing import Any

import pytest

from trainjob.launch.liveness import rank_behind
from trainjob.launch.stacks import Stack, waiting_call, waits_for_loader, waits_in_backward

TORCH = "/venv/lib/python3.11/site-packages/torch"


def stack(*frames: tuple[str, str]) -> Stack:
    lines = [f'  File "{file}", line 1 in {function}' for file, function in frames]
    main = "\n".join(["Current thread 0x1 (most recent call first):", *lines])
    return Stack(f"Thread 0x2 (most recent call first):\n  <no Python frame>\n\n{main}\n", main)


def user(tmp_path: Path, line: str) -> tuple[str, str]:
    file = tmp_path / "train.py"
    file.write_text(f"{line}\n")
    return str(file), "train"


@pytest.mark.parametrize(
    ("frames", "call"),
    [
        ([("distributed/distributed_c10d.py", "all_reduce")], "all_reduce"),
        (
            [
                ("distributed/distributed_c10d.py", "barrier"),
                ("distributed/c10d_logger.py", "wrapper"),
            ],
            "barrier",
        ),
        ([("distributed/distributed_c10d.py", "_store_based_barrier")], "store_based_barrier"),
        ([("cuda/__init__.py", "synchronize")], "synchronize"),
        ([("nn/modules/linear.py", "forward"), ("nn/parallel/distributed.py", "forward")], None),
        ([("distributed/distributed_c10d.py", "destroy_process_group")], "destroy_process_group"),
        ([("optim/adam.py", "step")], None),
    ],
)
def test_calls_of_torch_are_told_by_their_frames(tmp_path, frames, call):
    below = [(f"{TORCH}/{file}", function) for file, function in frames]

    found = waiting_call(stack(*below, user(tmp_path, "go()")), has_device=True)

    assert found == call


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("comm.Allreduce(MPI.IN_PLACE, grads)", "Allreduce"),
        ("comm.Barrier()", "Barrier"),
        ("parts = comm.gather(part, root=0)", "gather"),
        ("MPI.COMM_WORLD.send(x, dest=1)", "send"),
        ("MPI.Request.Waitall(requests)", "Waitall"),
        ("mpi.Finalize()", "Finalize"),
        ("y = torch.gather(x, 1, index)", None),
        ("out = x.scatter_add(0, index, y)", None),
        ("total = np.add.reduce(x)", None),
        ("send(message)", None),
        ("x = x * 2", None),
        ("loss = loss.item()", None),
    ],
)
def test_calls_of_mpi_are_told_by_their_source(tmp_path, line, call):
    assert waiting_call(stack(user(tmp_path, line)), has_device=False) == call


@pytest.mark.parametrize("line", ["loss.item()", "out.cpu()", "torch.npu.synchronize()"])
def test_waiting_for_a_device_is_told_only_where_there_is_one(tmp_path, line):
    assert waiting_call(stack(user(tmp_path, line)), has_device=True)
    assert waiting_call(stack(user(tmp_path, "y = f(x)")), has_device=True) is None


def test_the_source_of_an_outer_frame_says_nothing_of_the_inner(tmp_path):
    inner = ("/venv/lib/python3.11/site-packages/numpy/linalg.py", "svd")
    outer = user(tmp_path, "comm.Bcast(numpy.linalg.svd(x))")

    assert waiting_call(stack(inner, outer), has_device=True) is None


def test_a_source_that_is_not_there_says_nothing():
    frames = ("/nowhere/train.py", "train")

    assert waiting_call(stack(frames), has_device=True) is None
    assert waiting_call(Stack("", ""), has_device=True) is None


def test_waiting_for_batches_and_for_gradients_is_told(tmp_path):
    loader = stack((f"{TORCH}/utils/data/dataloader.py", "_try_get_data"), user(tmp_path, "f()"))
    backward = stack((f"{TORCH}/autograd/graph.py", "_engine_run_backward"), user(tmp_path, "f()"))

    assert (waits_for_loader(loader), waits_in_backward(loader)) == (True, False)
    assert (waits_for_loader(backward), waits_in_backward(backward)) == (False, True)


def rank(number: int, last_step: int | None, waits_in: str | None) -> dict[str, Any]:
    return {"rank": number, "last_step": last_step, "waits_in": waits_in}


@pytest.mark.parametrize(
    ("ranks", "behind"),
    [
        pytest.param([(5, "barrier"), (4, None)], 1, id="lowest-step"),
        pytest.param([(4, "barrier"), (5, "barrier")], 0, id="lowest-step-though-all-wait"),
        pytest.param([(5, "barrier"), (5, None), (5, "barrier")], 1, id="the-one-that-does-not"),
        pytest.param([(5, "barrier"), (5, "barrier")], None, id="all-wait"),
        pytest.param([(5, None), (5, None)], None, id="none-waits"),
        pytest.param([(5, None), (5, None), (5, "barrier")], None, id="two-do-not-wait"),
        pytest.param([(5, "barrier"), (None, "barrier")], None, id="only-rank-0-reports"),
        pytest.param([(None, "barrier"), (None, None)], 1, id="no-steps"),
        pytest.param([(5, "barrier"), (5, "Finalize")], 1, id="left-too-early"),
        pytest.param([(None, None)], 0, id="alone"),
    ],
)
def test_the_rank_behind_has_the_lowest_step_or_does_not_wait(ranks, behind):
    said = [rank(number, *facts) for number, facts in enumerate(ranks)]

    assert rank_behind(said) == behind
