"""MindSpore's ranks on CPU, by msrun: where ``pip install mindspore`` has brought its 0.8 GB."""

import pytest

from tests.launch.conftest import marked_processes
from trainjob.launch.failure import RankFailed
from trainjob.launch.training import run_training

pytest.importorskip("mindspore", reason="needs MindSpore")

SUM = """
    import os
    import numpy as np
    import mindspore
    from mindspore import Tensor, ops
    from mindspore.communication import get_rank, init

    mindspore.set_device("CPU")
    init()
    total = ops.AllReduce()(Tensor(np.array([get_rank() + 1.0], dtype=np.float32)))
    found = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    print("sum", float(total.asnumpy()[0]), get_rank(), *found, flush=True)
"""


def test_ranks_of_mindspore_find_one_another_and_leave(make_launch, watch):
    ran = watch(make_launch(SUM, launcher="msrun", world_size=2))

    assert ran.result.reason == "finished"
    assert "sum 3.0 0 0 2 0" in ran.lines(0)
    assert "sum 3.0 1 1 2 1" in ran.lines(1)


def test_a_program_that_never_calls_init_runs_once_a_rank(make_launch, watch):
    script = """
        import os
        print("once", os.environ["RANK"], flush=True)
        open(f"ran-{os.environ['RANK']}", "x").close()
    """
    ran = watch(make_launch(script, launcher="msrun", world_size=2))

    assert ran.result.reason == "finished"
    assert [ran.lines(rank) for rank in range(2)] == [["once 0"], ["once 1"]]


def test_a_rank_of_mindspore_that_raises_is_named_and_nothing_is_left(make_launch):
    script = SUM + '\n    if get_rank() == 1:\n        raise ValueError("bad label")\n'
    script += "    import time; time.sleep(3600)\n"

    launch = make_launch(script, launcher="msrun", world_size=2)

    with pytest.raises(RankFailed, match="rank 1 of 2 failed first: ValueError: bad label"):
        run_training(launch)

    assert not marked_processes(launch)
