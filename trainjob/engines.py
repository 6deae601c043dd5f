"""The engines of products: a framework, its version, and what surrounds it.

Products name them by texts such as ``1.9-py3.6-cuda11.1-gpu``. Such a text is read here and
compared with what is installed; it never chooses or installs anything. Nothing is imported.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator

from trainjob.launch.launch import Device
from trainjob.spec import Line

Framework = Literal["pytorch", "tensorflow", "mindspore", "mxnet", "caffe"]

_HOW_TO_WRITE = (
    "an engine with its framework, such as 'PyTorch / 1.9-py3.6-cuda11.1-gpu' or "
    "'mindspore_1.7.0-cann_5.1.0-py_3.7-euler_2.8.3-aarch64'"
)
_FILE = Path(__file__).with_name("engine_catalogue.yaml")
_WORDS: dict[Framework, str] = {
    "pytorch": "(?:py)?torch",
    "tensorflow": "tensorflow|tf",
    "mindspore": "mindspore",
    "mxnet": "mxnet",
    "caffe": "caffe",
}
_DISTRIBUTIONS: dict[Framework, tuple[str, ...]] = {
    "pytorch": ("torch",),
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-gpu"),
    "mindspore": ("mindspore", "mindspore-gpu", "mindspore-ascend"),
    "mxnet": ("mxnet",),
    "caffe": ("caffe",),
}
_MODULES: dict[Framework, str] = {"pytorch": "torch"}
"""What is imported, where it is not called like the framework."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What the text of an engine says. What it does not say is None.

    Attributes:
        framework: What the code was written for.
        version: Of the framework, such as ``1.9``.
        python: Version of Python.
        cuda: Version of CUDA.
        device: The kind of device that it is built for.
    """

    framework: Framework | None = None
    version: str | None = None
    python: str | None = None
    cuda: str | None = None
    device: Device | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an engine as products write it.

        Raises:
            ValueError: If neither a framework nor a kind of device is named.
        """
        lower = text.strip().lower()
        framework, found = _framework(lower)
        if framework is None:
            same = (entry for entry in catalogue() if entry.name.lower() == lower)
            framework = next((entry.framework for entry in same), None)
            found = _version_in_front(lower) if framework else None
        device = _device(lower)
        if framework is None and device != "npu":  # Ascend-Powered-Engine has several frameworks
            raise ValueError(f"write {_HOW_TO_WRITE}")
        return cls(
            framework=framework,
            version=found,
            python=_number(lower, "py(?:thon)?", _python_version),
            cuda=_number(lower, "cu(?:da)?", _cuda_version),
            device=device,
        )


@dataclass(frozen=True, slots=True)
class CatalogueEngine:
    """An engine that a product offers.

    Attributes:
        product: Which one.
        name: As the product writes it.
        framework: What the name does not say.
        is_old: Whether the product shows it only to who asks for old ones.
        has_auto_search: Whether the product searches hyperparameters with it.
    """

    product: str
    name: str
    framework: Framework | None = None
    is_old: bool = False
    has_auto_search: bool = False


@dataclass(frozen=True, slots=True)
class Installed:
    """A framework that is installed in this Python.

    Attributes:
        name: What is installed, such as ``torch``.
        version: Its version; None: it does not say.
    """

    name: str
    version: str | None

    def __str__(self) -> str:
        """Return name and version."""
        return f"{self.name} {self.version}" if self.version else f"{self.name} of no version"


@cache
def catalogue() -> tuple[CatalogueEngine, ...]:
    """Return the engines that products offer, in the order of the file."""
    lines: list[dict[str, Any]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return tuple(CatalogueEngine(**line) for line in lines)


def installed(framework: Framework) -> Installed | None:
    """Return what is installed of a framework in this Python; None: it cannot be imported."""
    for name in _DISTRIBUTIONS[framework]:
        try:
            return Installed(name, version(name))
        except PackageNotFoundError:
            continue
    module = _MODULES.get(framework, framework)
    return Installed(module, None) if find_spec(module) else None


def differences(engine: Engine, found: Installed) -> list[str]:
    """Return in what the installed framework and this Python are other than the engine says.

    A version is the same if it begins with what the engine says: 1.9.1 is 1.9.
    """
    here = {
        engine.framework: (engine.version, found.version),
        "Python": (engine.python, ".".join(map(str, sys.version_info[:3]))),
        "CUDA": (engine.cuda, _cuda_of(found)),
    }
    return [
        f"{name} {is_here}"
        for name, (asked, is_here) in here.items()
        if asked and is_here and not _begins_with(is_here, asked)
    ]


def _engine_text(text: str) -> str:
    Engine.parse(text)
    return text


EngineName = Annotated[Line, AfterValidator(_engine_text)]
"""The text of an engine, kept as it was written."""


def _framework(text: str) -> tuple[Framework | None, str | None]:
    for framework, word in _WORDS.items():
        if match := _find(text, word):
            return framework, _framework_version(match["number"]) if match["number"] else None
    return None, None


def _find(text: str, word: str) -> re.Match[str] | None:
    """Find a word by itself, and the number behind it: all of it, so none in ``cuda11x``."""
    number = r"(?:[\s_/-]*(?P<number>\d+(?:\.\d+)*)(?![a-z0-9.]))?"
    return re.search(rf"(?<![a-z0-9])(?:{word})(?![a-z]){number}", text)


def _number(text: str, word: str, spelled: Callable[[str], str | None]) -> str | None:
    match = _find(text, word)
    return spelled(match["number"]) if match and match["number"] else None


# openi:cuda111_python37_pytorch191 is the name of an image, which has no dots. What can be read in
# two ways is left out, since a wrong reading would be told as a difference.


def _framework_version(number: str) -> str | None:
    """Return ``1.9.1`` of ``191``; None of ``113``, which is 1.13 as well."""
    if len(number) == 1 or "." in number:
        return number
    return ".".join(number) if re.fullmatch(r"\d(?:\d|[03-9]\d)", number) else None


def _python_version(number: str) -> str | None:
    """Return ``3.12`` of ``312``; None of ``3106``."""
    if len(number) == 1 or "." in number:
        return number
    return f"{number[0]}.{number[1:]}" if re.fullmatch(r"[23]\d{1,2}", number) else None


def _cuda_version(number: str) -> str | None:
    """Return ``11.1`` of ``111``, and ``9.2`` of ``92``; None of ``1241``."""
    if "." in number or re.fullmatch(r"1?\d", number):
        return number
    return f"{number[:-1]}.{number[-1]}" if re.fullmatch(r"\d{2,3}", number) else None


def _version_in_front(text: str) -> str | None:
    match = re.match(r"\s*(\d+(?:\.\d+)*)-", text)
    return match[1] if match else None


def _device(text: str) -> Device | None:
    words: dict[Device, str] = {"npu": "ascend|cann|npu", "cuda": "cu(?:da)?|gpu", "cpu": "cpu"}
    return next((device for device, word in words.items() if _find(text, word)), None)


def _cuda_of(found: Installed) -> str | None:
    """Return the CUDA that a build of torch is for, which its local version says: 2.3.0+cu121."""
    local = (found.version or "").partition("+")[2]
    match = re.fullmatch(r"cu(\d{3})", local)
    return _cuda_version(match[1]) if match else None


def _begins_with(found: str, asked: str) -> bool:
    try:
        wanted = Version(asked).release
        return Version(found).release[: len(wanted)] == wanted
    except InvalidVersion:
        return True  # what a vendor calls its build is not for us to compare
