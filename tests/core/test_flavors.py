"""Flavors: what products and platforms call machines, and what a job keeps of them."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainjob.errors import JobError, Problem
from trainjob.flavor_catalogue import flavors_of, refresh_flavor
from trainjob.flavors import Flavor
from trainjob.job import TrainingJob
from trainjob.registry.folder import registry_of_machine
from trainjob.resources import Resources

MINIMAL = {"name": "x", "algorithm": {"code": {"url": "c"}, "boot_file": "t.py"}}
CARDS = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9 .-]{0,8}[A-Za-z0-9])?", fullmatch=True)
SIZES = st.integers(1, 99_999)
FLAVORS = st.builds(Flavor, cores=SIZES, memory_gib=SIZES) | st.builds(
    Flavor, cores=SIZES, memory_gib=SIZES, card=CARDS, cards=st.integers(1, 64)
)


def job(flavor: Any, **resources: Any) -> TrainingJob:
    return TrainingJob.parse(MINIMAL | {"resources": {"flavor": flavor, **resources}})


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that names the flavors of this machine."""
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path))
    file = tmp_path / "flavors.yaml"
    file.write_text(
        "2c4g: {price_per_hour: 0.4}\n"
        "8C40G V100*1: {disk_gib: 500, price_per_hour: 12.6}\n"
        "lab-npu: {size: 24c96g Ascend 910*8, price_per_hour: 40, pool: lab}\n"
        "small: 1c2g\n"
    )
    return file


@pytest.mark.parametrize("text", ["2c4g", "2C4G", "2c 4GiB", " 2c4g "])
def test_a_flavor_is_cores_and_memory(text: str) -> None:
    assert Flavor.parse(text) == Flavor(cores=2, memory_gib=4)
    assert str(Flavor.parse(text)) == "2c4g"


@pytest.mark.parametrize(
    ("text", "card", "cards", "device"),
    [
        ("8C40G V100*1", "V100", 1, "cuda"),
        ("8c40g RTX 3090 * 2", "RTX 3090", 2, "cuda"),
        ("24C96G Ascend 910B*8", "Ascend 910B", 8, "npu"),
        ("24c96g Snt9b*1", "Snt9b", 1, "npu"),
        ("24c96g 910*1", "910", 1, "npu"),
        ("24c96g 9100*1", "9100", 1, "cuda"),
        ("8c40g Huawei Ascend 910B*1", "Huawei Ascend 910B", 1, "npu"),
        ("24c96g Atlas 800 910B*8", "Atlas 800 910B", 8, "npu"),
        ("8c40g NVIDIA NVS 310*1", "NVIDIA NVS 310", 1, "cuda"),
        ("4c8g", None, 0, None),
    ],
)
def test_a_flavor_of_a_product_says_its_cards(
    text: str, card: str | None, cards: int, device: str | None
) -> None:
    flavor = Flavor.parse(text)

    assert (flavor.card, flavor.cards, flavor.device) == (card, cards, device)


@pytest.mark.parametrize(
    "text", ["", "2c", "4g", "0c4g", "2x4", "8c40g V100", "8c40g V100*0", "8c40g *1", "²c4g"]
)
def test_what_is_not_a_flavor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"flavor|greater than or equal|card and cards"):
        Flavor.parse(text)


@given(FLAVORS)
def test_the_size_of_a_flavor_reads_back(flavor: Flavor) -> None:
    assert Flavor.parse(flavor.size) == flavor
    assert Flavor.parse(flavor.size.upper()).size.lower() == flavor.size.lower()


@given(st.text())
def test_any_text_is_a_flavor_or_refused(text: str) -> None:
    try:
        flavor = Flavor.parse(text)
    except ValueError:
        return
    assert Flavor.parse(str(flavor)) == flavor


@given(FLAVORS, st.none() | st.floats(0, 1e6), st.none() | st.integers(1, 10**6))
def test_all_of_a_flavor_survives_the_trip_through_json(
    size: Flavor, price: float | None, disk_gib: int | None
) -> None:
    update = {"price_per_hour": price, "disk_gib": disk_gib, "name": "x" if price else None}
    flavor = size.model_copy(update=update)

    assert Flavor.model_validate_json(flavor.model_dump_json()) == flavor


def test_a_flavor_that_is_only_a_size_is_written_as_text() -> None:
    size: Any = Flavor.parse("8C40G V100*1").model_dump()
    priced = Flavor(cores=2, memory_gib=4, price_per_hour=1).model_dump()

    assert size == "8c40g V100*1"
    assert (priced["cores"], priced["price_per_hour"]) == (2, 1)


@pytest.mark.parametrize(
    ("flavor", "expected"),
    [
        ({"cores": 2}, "resources.flavor.memory_gib: asked for a value, found nothing"),
        ({"cores": 2, "memory_gib": 4, "cards": 1}, "resources.flavor: asked for card and cards"),
        ({"cores": 2, "memory_gib": 4, "price_per_hour": -1}, "resources.flavor.price_per_hour"),
        ({"cores": 2, "memory_gib": 4, "gpu": 1}, "resources.flavor.gpu: asked for a known key"),
        (3, "resources.flavor: asked for a flavor as cores and GiB of memory"),
        ([1], "resources.flavor: asked for a flavor as cores and GiB of memory"),
    ],
)
def test_mistakes_in_the_keys_of_a_flavor_are_told(flavor: Any, expected: str) -> None:
    with pytest.raises(JobError) as raised:
        job(flavor)

    [problem] = raised.value.problems
    assert str(problem).startswith(expected)


@pytest.mark.parametrize("text", ["8C40G V100*1", "8c40g v100*1", "8c 40GiB V100 * 1"])
def test_a_size_that_the_platform_prices_has_its_price(catalogue: Path, text: str) -> None:
    flavor = job(text).resources.flavor

    assert flavor is not None
    assert (flavor.price_per_hour, flavor.disk_gib, flavor.name) == (12.6, 500, None)


def test_a_flavor_is_named_by_the_platform(catalogue: Path) -> None:
    given = {"resources": {"flavor": "lab-npu"}, "logs": {"url": "/logs"}}

    resources = TrainingJob.parse(MINIMAL | given).resources

    assert resources.device == "npu"
    assert str(resources.flavor) == "lab-npu (24c96g Ascend 910*8)"
    assert resources.flavor is not None
    assert resources.flavor.pool == "lab"


def test_a_job_keeps_the_flavor_that_it_was_read_with(catalogue: Path) -> None:
    read = job("small")
    catalogue.unlink()

    again = TrainingJob.parse(read.model_dump(mode="json"))

    assert again == read
    assert str(again.resources.flavor) == "small (1c2g)"


def test_an_unknown_flavor_names_those_that_there_are(catalogue: Path) -> None:
    with pytest.raises(JobError) as raised:
        job("big")

    [problem] = raised.value.problems
    assert problem.found == "'big', and only 2c4g, 8c40g V100*1, lab-npu, small there"
    assert repr(str(catalogue)) in problem.asked


def test_a_flavor_beside_other_mistakes_is_told_with_them(catalogue: Path) -> None:
    with pytest.raises(JobError) as raised:
        job("big", nodes=0)

    assert [p.field for p in raised.value.problems] == ["resources.flavor", "resources.nodes"]


@pytest.mark.parametrize(
    ("text", "field", "found"),
    [
        ("a: {sise: 1c1g}", "a.sise", "'sise'"),
        ("a: {size: big}", "a.size", "'big'"),
        ("a: {price_per_hour: 1}", "a.size", "'a'"),
        ("1c1g: {price_per_hour: -1}", "1c1g.price_per_hour", "-1"),
        ("1c1g: {disk_gib: 0}", "1c1g.disk_gib", "0"),
        ("1c1g: 3.5", "1c1g", "3.5"),
        ("1c1g: [1]", "1c1g", "[1]"),
        ("1c1g:\n1C1G:", "1c1g", "another spelling of it"),
        ("1c1g: {}\n1c1g: {}", "flavors file", "the key '1c1g' is given twice at line 2, column 1"),
        ("", "flavors file", "an empty file"),
    ],
)
def test_every_mistake_in_the_flavors_of_a_platform_has_its_message(
    catalogue: Path, text: str, field: str, found: str
) -> None:
    catalogue.write_text(text)

    [problem] = mistakes()

    assert (problem.field, problem.found) == (field, found)


def mistakes() -> tuple[Problem, ...]:
    try:
        return flavors_of(registry_of_machine().place).problems
    except JobError as error:  # of the file as a whole
        return error.problems


@pytest.mark.parametrize("broken", ["big: {size: 4 cores}", "1c1g:\n1C1G:"])
def test_a_mistake_in_one_flavor_keeps_no_job_from_another(catalogue: Path, broken: str) -> None:
    catalogue.write_text(f"2c4g: {{price_per_hour: 0.4}}\n{broken}\n")

    named, unnamed = job("2C4G").resources.flavor, job("16c64g").resources.flavor

    assert named
    assert unnamed
    assert (named.price_per_hour, str(unnamed)) == (0.4, "16c64g")


@pytest.mark.parametrize(
    ("text", "flavor", "expected"),
    [
        ("big: {size: 4 cores}", "big", "big.size: asked for a flavor as cores"),
        ("1c1g:\n1C1G:", "1C 1G", "1c1g: asked for a flavor once, found another spelling"),
        ("a: 1c1g\n8c8g: {disk_gib: 0}", "8c8g", "8c8g.disk_gib: asked for"),
    ],
)
def test_a_job_is_told_the_mistake_in_the_flavor_that_it_names(
    catalogue: Path, text: str, flavor: str, expected: str
) -> None:
    catalogue.write_text(text)

    with pytest.raises(JobError) as raised:
        job(flavor)

    [problem] = raised.value.problems
    assert (problem.field, problem.do) == ("resources.flavor", "correct it there")
    assert problem.found.startswith(f"a mistake in {str(catalogue)!r}: {expected}")


def test_an_unknown_flavor_names_those_with_mistakes_too(catalogue: Path) -> None:
    catalogue.write_text("2c4g:\nbig: {size: 4 cores}")

    with pytest.raises(JobError) as raised:
        job("bug")

    [problem] = raised.value.problems
    assert problem.found == "'bug', and only 2c4g there, and big with a mistake"


def test_a_job_that_is_run_again_keeps_its_flavor_beside_one_with_a_mistake(
    catalogue: Path,
) -> None:
    read = job("small").model_dump(mode="json")
    catalogue.write_text("small: {size: 1c2g, price_per_hour: 3}\nbig: {size: 4 cores}")

    again = TrainingJob.parse(refresh_flavor(read, registry_of_machine().place))

    assert again.resources.flavor
    assert again.resources.flavor.price_per_hour == 3


def test_the_device_of_a_job_follows_from_the_cards_of_its_flavor() -> None:
    assert Resources.model_validate({"flavor": "8C40G V100*1"}).device == "cuda"
    assert Resources(flavor=Flavor.parse("24c96g Ascend 910*1")).device == "npu"
    assert Resources.model_validate({"flavor": "8c40g"}).device == "cpu"
    assert Resources.model_validate({"flavor": "8c40g", "device": "cuda"}).device == "cuda"
