"""Which pools `make serve` finds useful on a machine."""

from pathlib import Path

import pytest

from deployments.serve import pools_of_machine
from trainjob.launch import devices


@pytest.mark.parametrize(
    ("files", "environ", "pools"),
    [
        ([], {}, ["cpu"]),
        (["nvidiactl", "nvidia0"], {}, ["cpu", "gpu"]),
        (["davinci0", "davinci1"], {}, ["cpu", "npu"]),
        (["nvidia0", "davinci0"], {}, ["cpu", "gpu", "npu"]),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": ""}, ["cpu"]),
        (["nvidiactl", "davinci_manager"], {}, ["cpu"]),
    ],
    ids=["no card", "a GPU", "NPUs", "both", "a hidden GPU", "drivers without cards"],
)
def test_a_machine_serves_the_pools_that_it_has_devices_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: list[str],
    environ: dict[str, str],
    pools: list[str],
) -> None:
    monkeypatch.setattr(devices, "DEV_DIR", tmp_path)
    for name in files:
        (tmp_path / name).touch()

    assert pools_of_machine(environ) == pools
