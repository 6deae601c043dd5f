"""Engines of products: what their names say, and what is installed in their place."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainjob.engines import Engine, Framework, Installed, catalogue, differences, installed

NUMBERS = st.builds("{}.{}".format, st.integers(0, 99), st.integers(0, 99))
PYTHON_HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "1.9-py3.6-cuda11.1-gpu",
            Engine("pytorch", "1.9", python="3.6", cuda="11.1", device="cuda"),
        ),
        (
            "Built-in framework / PyTorch / 1.9-py3.6-cuda11.1-gpu",
            Engine("pytorch", "1.9", python="3.6", cuda="11.1", device="cuda"),
        ),
        (
            "verl0.6.1-vllm0.11.0-torch2.8-py312-cuda12.8-gpu",
            Engine("pytorch", "2.8", python="3.12", cuda="12.8", device="cuda"),
        ),
        ("Ascend-Powered-Engine", Engine(device="npu")),
        ("Ascend-Powered-Engine / MindSpore1.8.1", Engine("mindspore", "1.8.1", device="npu")),
        ("TensorFlow1.15", Engine("tensorflow", "1.15")),
        (
            "tensorflow_1.15-cann_5.1.0-py_3.7-euler_2.8.3-aarch64",
            Engine("tensorflow", "1.15", python="3.7", device="npu"),
        ),
        (
            "horovod_0.22.1-pytorch_1.8.0-cuda_10.2-py_3.7-ubuntu_18.04-x86_64",
            Engine("pytorch", "1.8.0", python="3.7", cuda="10.2", device="cuda"),
        ),
        (
            "mindspore_1.7.0-cpu-py_3.7-ubuntu_18.04-x86_64",
            Engine("mindspore", "1.7.0", python="3.7", device="cpu"),
        ),
        ("TF-1.4.0-python2.7", Engine("tensorflow", "1.4.0", python="2.7")),
        (
            "user-images/openi:cuda111_python37_pytorch191",
            Engine("pytorch", "1.9.1", python="3.7", cuda="11.1", device="cuda"),
        ),
        ("pytorch", Engine("pytorch")),
        ("pytorch21", Engine("pytorch", "2.1")),
        # 1.13 or 1.1.3, 1.13.1 or 1.1.31: what cannot be told is not said.
        ("openi:cuda102_pytorch113", Engine("pytorch", cuda="10.2", device="cuda")),
        ("pytorch1131", Engine("pytorch")),
        ("torch2.3-cuda11x", Engine("pytorch", "2.3", device="cuda")),
        (
            "torch2.3-py310-cuda92",
            Engine("pytorch", "2.3", python="3.10", cuda="9.2", device="cuda"),
        ),
        ("mindspore_2.0.0rc1-py3106", Engine("mindspore")),
    ],
)
def test_an_engine_is_read_as_its_product_writes_it(text: str, expected: Engine) -> None:
    assert Engine.parse(text) == expected
    assert Engine.parse(text.upper()) == expected


@pytest.mark.parametrize("text", ["", "1.8-py3.6", "fastai", "torchvision 0.2", "python3.7", "gpu"])
def test_a_text_without_a_framework_is_no_engine(text: str) -> None:
    with pytest.raises(ValueError, match="write an engine with its framework"):
        Engine.parse(text)


@given(
    st.sampled_from(["pytorch", "tensorflow", "mindspore", "mxnet", "caffe"]),
    NUMBERS,
    st.builds("3.{}".format, st.integers(6, 20)),
    NUMBERS,
)
def test_both_ways_of_writing_say_the_same(
    framework: Framework, version: str, python: str, cuda: str
) -> None:
    of_modelarts = f"{framework}_{version}-cuda_{cuda}-py_{python}-ubuntu_18.04-x86_64"
    of_tione = f"{framework.upper()} / {version}-py{python}-cuda{cuda}-gpu"

    expected = Engine(framework, version, python=python, cuda=cuda, device="cuda")
    assert Engine.parse(of_modelarts) == Engine.parse(of_tione) == expected


@given(st.text() | st.text("pytorch_-/ 0123456789.cudangTF"))
def test_any_text_is_an_engine_or_refused(text: str) -> None:
    try:
        engine = Engine.parse(text)
    except ValueError:
        return
    assert engine.framework or engine.device == "npu"


def test_every_engine_of_the_catalogue_is_read() -> None:
    engines = {entry.name: Engine.parse(entry.name) for entry in catalogue()}

    assert len(engines) == len(catalogue())
    unnamed = [name for name, engine in engines.items() if engine.framework is None]
    assert unnamed == ["Ascend-Powered-Engine"]
    assert {entry.product for entry in catalogue()} == {"tione", "openi", "modelarts"}


def test_the_engines_of_auto_search_are_those_of_the_product() -> None:
    assert {entry.name for entry in catalogue() if entry.has_auto_search} == {
        "mindspore_1.7.0-cann_5.1.0-py_3.7-euler_2.8.3-aarch64",
        "pytorch_1.8.0-cuda_10.2-py_3.7-ubuntu_18.04-x86_64",
        "tensorflow_1.15-cann_5.1.0-py_3.7-euler_2.8.3-aarch64",
        "tensorflow_2.1.0-cuda_10.1-py_3.7-ubuntu_18.04-x86_64",
    }


def test_what_is_installed_is_found_without_importing_it() -> None:
    already = "torch" in sys.modules

    found = installed("pytorch")

    assert found is not None
    assert found.name == "torch"
    assert ("torch" in sys.modules) == already
    assert installed("caffe") is None


@pytest.mark.parametrize(
    ("text", "found", "expected"),
    [
        ("pytorch_2.3", "2.3.1", []),
        ("pytorch_2.3.0", "2.3.1", ["pytorch 2.3.1"]),
        ("pytorch_2.30", "2.3.1", ["pytorch 2.3.1"]),
        ("pytorch", "2.3.1", []),
        ("pytorch_2.3-cuda_12.1", "2.3.1+cu121", []),
        ("pytorch_2.3-cuda_12.1", "2.3.1+cu118", ["CUDA 11.8"]),
        ("pytorch_2.3-cuda_12.1", "2.3.1+vendor", []),
        ("pytorch_2.3", "vendor-build", []),
        (f"pytorch_2.3-py_{PYTHON_HERE}", "2.3.1", []),
    ],
)
def test_an_engine_is_compared_with_what_is_here(
    text: str, found: str, expected: list[str]
) -> None:
    assert differences(Engine.parse(text), Installed("torch", found)) == expected


def test_another_python_is_a_difference() -> None:
    here = ".".join(map(str, sys.version_info[:3]))

    found = differences(Engine.parse("pytorch_2.3-py_3.6"), Installed("torch", "2.3.1"))

    assert found == [f"Python {here}"]


def test_a_framework_that_says_no_version_differs_in_nothing() -> None:
    assert differences(Engine.parse("caffe-1.0.0"), Installed("caffe", None)) == []
