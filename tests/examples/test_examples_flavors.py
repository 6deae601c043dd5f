"""examples/flavors.yaml, which platforms copy: every line of it can be used."""

from pathlib import Path

from trainjob.flavor_catalogue import flavors_of
from trainjob.registry.folder import FolderPlace

ROOT = Path(__file__).parents[2]


def test_the_flavors_to_begin_with_are_of_every_device_and_most_have_a_price() -> None:
    flavors = list(flavors_of(FolderPlace(ROOT / "examples")).flavors.values())

    assert {flavor.device for flavor in flavors} == {None, "cuda", "npu"}
    assert [str(f) for f in flavors if f.price_per_hour is None] == ["small (1c2g)"]
