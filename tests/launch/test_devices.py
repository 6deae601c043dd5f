from pathlib import Path

import pytest

from trainjob.launch.devices import num_devices


@pytest.fixture
def dev_dir(tmp_path: Path) -> Path:
    """A machine with 4 GPUs and 2 NPUs, and what their drivers put beside them."""
    names = [*(f"nvidia{i}" for i in range(4)), "nvidiactl", "nvidia-uvm", "nvidia-caps"]
    names += ["davinci0", "davinci1", "davinci_manager", "null"]
    for name in names:
        (tmp_path / name).touch()
    return tmp_path


def test_only_files_of_devices_are_counted(dev_dir):
    assert num_devices("cuda", {}, dev_dir) == 4
    assert num_devices("npu", {}, dev_dir) == 2
    assert num_devices("cpu", {}, dev_dir) == 1


def test_a_machine_without_accelerators_has_none(tmp_path):
    assert num_devices("cuda", {}, tmp_path) == 0
    assert num_devices("npu", {"ASCEND_RT_VISIBLE_DEVICES": "0"}, tmp_path) == 0


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        ("", 0),
        ("0", 1),
        ("1, 3", 2),
        ("-1", 0),
        ("0,-1,1", 1),
        ("0,9,1", 1),
        ("GPU-8932f937,GPU-46abccd6", 2),
        ("MIG-b3a1", 1),
        ("0,1,2,3", 4),
    ],
)
def test_devices_hidden_by_the_environment_do_not_count(dev_dir, visible, count):
    assert num_devices("cuda", {"CUDA_VISIBLE_DEVICES": visible}, dev_dir) == count


def test_each_kind_has_its_own_variable(dev_dir):
    environ = {"CUDA_VISIBLE_DEVICES": "", "ASCEND_RT_VISIBLE_DEVICES": "1"}

    assert num_devices("npu", environ, dev_dir) == 1
