from pathlib import Path

import pytest

from trainjob.launch import devices
from trainjob.launch.devices import num_devices, visible_cards


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The /dev of a machine with 4 GPUs and 2 NPUs, and what their drivers put beside them."""
    names = [*(f"nvidia{i}" for i in range(4)), "nvidiactl", "nvidia-uvm", "nvidia-caps"]
    names += ["davinci0", "davinci1", "davinci_manager", "null"]
    dev_dir = tmp_path / "dev"
    dev_dir.mkdir()
    for name in names:
        (dev_dir / name).touch()
    monkeypatch.setattr(devices, "DEV_DIR", dev_dir)
    return dev_dir


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What NVIDIA's driver says of the third and the fourth GPU in /proc."""
    for bus, uuid, minor in (("0000:3b:00.0", "GPU-8932f937", 2), ("0000:af:00.0", "GPU-46ab", 3)):
        folder = tmp_path / "gpus" / bus
        folder.mkdir(parents=True)
        text = f"Model: \t\t NVIDIA H200\nGPU UUID: \t {uuid}-d72c\nDevice Minor: \t {minor}\n"
        (folder / "information").write_text(text)
    monkeypatch.setattr(devices, "_NVIDIA_DIR", tmp_path / "gpus")


def names(device, **environ) -> list[str]:
    return [card.name for card in visible_cards(device, environ)]


@pytest.mark.usefixtures("machine")
def test_only_files_of_devices_are_counted():
    assert num_devices("cuda", {}) == 4
    assert num_devices("npu", {}) == 2
    assert num_devices("cpu", {}) == 1


def test_a_machine_without_accelerators_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "DEV_DIR", tmp_path)

    assert num_devices("cuda", {}) == 0
    assert num_devices("npu", {"ASCEND_RT_VISIBLE_DEVICES": "0"}) == 0
    assert num_devices("cuda", {"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}) == 0


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("visible", "count"),
    [
        ("", 0),
        ("0", 1),
        ("1, 3", 2),
        ("1,1", 1),
        ("-1", 0),
        ("0,-1,1", 1),
        ("0,9,1", 1),
        ("GPU-8932f937,GPU-46abccd6", 2),
        ("MIG-b3a1", 1),
        ("NoDevFiles", 0),  # what Slurm writes for a job without GPUs
        ("0,none,1", 1),
        ("0,1,2,3", 4),
    ],
)
def test_devices_hidden_by_the_environment_do_not_count(visible, count):
    assert num_devices("cuda", {"CUDA_VISIBLE_DEVICES": visible}) == count


@pytest.mark.usefixtures("machine")
def test_each_kind_has_its_own_variable():
    environ = {"CUDA_VISIBLE_DEVICES": "", "ASCEND_RT_VISIBLE_DEVICES": "1"}

    assert num_devices("npu", environ) == 1


@pytest.mark.usefixtures("machine")
def test_chosen_cards_are_in_ascending_order():
    cards = visible_cards("npu", {"ASCEND_RT_VISIBLE_DEVICES": "1, 0"})

    assert [card.choice for card in cards] == ["0", "1"]


def test_a_card_is_named_after_its_file_and_chosen_by_its_place(machine):
    """A container with a part of the cards counts them anew; the machine does not."""
    for gone in ("nvidia0", "nvidia2"):
        (machine / gone).unlink()

    cards = visible_cards("cuda", {})

    assert [(card.name, card.choice) for card in cards] == [("cuda:1", "0"), ("cuda:3", "1")]


@pytest.mark.usefixtures("machine", "driver")
def test_a_card_has_one_name_whether_chosen_by_its_place_or_its_uuid():
    assert names("cuda", CUDA_VISIBLE_DEVICES="2,3") == ["cuda:2", "cuda:3"]
    assert names("cuda", CUDA_VISIBLE_DEVICES="GPU-8932f937-d72c,GPU-46") == ["cuda:2", "cuda:3"]


def test_cards_are_counted_in_the_order_of_their_buses(machine, tmp_path, monkeypatch):
    """The numbers of the files need not follow it: on an A100 system they do not."""
    for name in ("nvidia2", "nvidia3"):
        (machine / name).unlink()
    for bus, minor in (("0000:3b:00.0", 1), ("0000:af:00.0", 0)):
        folder = tmp_path / "gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"GPU UUID: \t GPU-{minor}\nDevice Minor: \t {minor}\n")
    monkeypatch.setattr(devices, "_NVIDIA_DIR", tmp_path / "gpus")

    assert names("cuda") == ["cuda:1", "cuda:0"]
    assert names("cuda", CUDA_VISIBLE_DEVICES="0") == ["cuda:1"]


def test_parts_of_one_card_count_each(machine):
    for name in ("nvidia1", "nvidia2", "nvidia3"):
        (machine / name).unlink()

    assert num_devices("cuda", {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}) == 2


@pytest.mark.usefixtures("machine", "driver")
def test_a_card_that_is_chosen_twice_in_two_ways_is_one():
    assert num_devices("cuda", {"CUDA_VISIBLE_DEVICES": "2,GPU-8932f937"}) == 1
