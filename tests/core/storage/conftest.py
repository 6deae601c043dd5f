"""Places that hold trees: the same promises are tested on a folder and on a real S3 store."""

import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.core.storage.engines import ENGINES, shorten_parts, use_engine
from tests.core.storage.scripted_store import Reply, ScriptedStore, scripted_store
from tests.s3_faults import FaultProxy, fault_proxy
from tests.s3_server import S3Server
from trainjob.storage.curl.transport import Transport
from trainjob.storage.settings import StoreSettings

PART_BYTES = 1 << 20
SIZES = {"one request": 200_000, "in parts": 3 * PART_BYTES}
"""Of what is downloaded; the parts are as small as this in tests that ask for a `size`."""

NASTY_NAMES = (
    "plain.txt",
    "a space/b c.txt",
    "ünïcode/数字.bin",
    "+%41&?#=;:@,$'\"!~*()[]{}^|.txt",
    "new\nline.txt",
    "-dash",
    ".hidden/.file",
    "deep/er/and/deep/er/file",
    "empty",
)


class Place(Protocol):
    """A folder that the test may fill and look into without our code."""

    url: str
    settings: StoreSettings

    def put(self, path: str, data: bytes) -> None: ...
    def get(self, path: str) -> bytes: ...
    def delete(self, path: str) -> None: ...
    def paths(self) -> list[str]: ...


class LocalPlace:
    settings = StoreSettings()

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file://{root}"

    def put(self, path: str, data: bytes) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(data)

    def get(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def delete(self, path: str) -> None:
        (self.root / path).unlink()

    def paths(self) -> list[str]:
        files = (path for path in self.root.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.root)) for path in files)


class S3Place:
    def __init__(self, server: S3Server, bucket: str) -> None:
        self.server = server
        self.settings = server.settings
        self.bucket = bucket
        self.prefix = f"{uuid.uuid4().hex}/tree"
        self.url = f"s3://{bucket}/{self.prefix}"

    def put(self, path: str, data: bytes) -> None:
        self.server.put(self.bucket, f"{self.prefix}/{path}", data)

    def get(self, path: str) -> bytes:
        return self.server.get(self.bucket, f"{self.prefix}/{path}")

    def delete(self, path: str) -> None:
        self.server.delete(self.bucket, f"{self.prefix}/{path}")

    def paths(self) -> list[str]:
        keys = self.server.keys(self.bucket, f"{self.prefix}/")
        return [key.removeprefix(f"{self.prefix}/") for key in keys]


@pytest.fixture(scope="session")
def shared_bucket(s3: S3Server) -> str:
    """One bucket for all places, since making one takes longer than most tests."""
    return s3.new_bucket()


@pytest.fixture(params=["file", "curl"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A folder, or a prefix behind the engine that is used unless somebody wants another one."""
    if request.param == "file":
        return LocalPlace(tmp_path / "place")
    s3_place: S3Place = request.getfixturevalue("s3_place")
    return s3_place


@pytest.fixture(params=["file", *ENGINES])
def any_place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    """As `place`, with every engine: for the promises of a store itself."""
    if request.param == "file":
        return LocalPlace(tmp_path / "place")
    use_engine(monkeypatch, request.param)
    s3_place: S3Place = request.getfixturevalue("s3_place")
    return s3_place


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine behind ``s3://`` in this test."""
    use_engine(monkeypatch, request.param)
    return str(request.param)


@pytest.fixture
def s3_place(s3: S3Server, shared_bucket: str) -> S3Place:
    return S3Place(s3, shared_bucket)


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[FaultProxy]:
    """A way to the store on which a test makes things go wrong."""
    with fault_proxy(s3.port, lambda method, path: None) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def contents() -> dict[str, bytes]:
    """An object of every size."""
    return {name: random.Random(name).randbytes(size) for name, size in SIZES.items()}


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether an object takes one request, or goes in parts."""
    shorten_parts(monkeypatch, PART_BYTES)
    return str(request.param)


@pytest.fixture
def nasty_tree(tmp_path: Path) -> dict[str, bytes]:
    """Names that are legal and hard, with content that differs."""
    return {name: name.encode() * 7 if name != "empty" else b"" for name in NASTY_NAMES}


@pytest.fixture
def write_tree():
    def write(root: Path, tree: dict[str, bytes]) -> Path:
        for name, data in tree.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        return root

    return write


@pytest.fixture
def read_tree():
    def read(root: Path) -> dict[str, bytes]:
        files = (path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): path.read_bytes() for path in files}

    return read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run that is kept in a store."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def replies() -> list[Reply]:
    """What the store `scripted` answers next; afterwards an empty 200."""
    return []


@pytest.fixture
def scripted(replies: list[Reply]) -> Iterator[ScriptedStore]:
    with scripted_store(lambda _: replies.pop(0) if replies else Reply()) as store:
        yield store


@pytest.fixture
def transport(scripted: ScriptedStore) -> Iterator[Transport]:
    """Connections to a bucket of `scripted`."""
    transport = Transport("b", scripted.settings)
    yield transport
    transport.close()
