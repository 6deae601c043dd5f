"""What tests of checkpoints in stores do again and again, and a store that can be interrupted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainjob.storage import checkpoint_store
from trainjob.storage.checkpoint_claim import OWNER
from trainjob.storage.checkpoint_index import INDEXES
from trainjob.storage.checkpoint_mirror import CheckpointMirror
from trainjob.storage.checkpoint_restore import Restored, restore_checkpoints
from trainjob.storage.store import open_store


def save_step(folder: Path, step: int, data: bytes = b"weights") -> None:
    """What trainjob.checkpoint leaves; .metadata is a file of torch.distributed.checkpoint."""
    partial = folder / f".tmp-{step}"
    partial.mkdir(parents=True)
    (partial / "model.pt").write_bytes(data)
    (partial / ".metadata").write_bytes(b"%d" % step)
    (partial / "COMPLETE").write_bytes(b"")
    partial.rename(folder / f"step-{step:08d}")


def mirror(folder: Path, place, run_id="run-1", job="digits", journal=None) -> CheckpointMirror:
    return CheckpointMirror(
        folder, place.url, place.settings, job=job, run_id=run_id, journal=journal
    )


def restore(place, target: Path, run_id="run-1", job="digits", **others) -> Restored:
    return restore_checkpoints(place.url, target, place.settings, job=job, run_id=run_id, **others)


def files_of(paths) -> list[str]:
    return [path for path in paths if not path.startswith("_trainjob/")]


def index_of(place) -> dict[str, Any]:
    index: dict[str, Any] = json.loads(place.get(index_path_of(place)))
    return index


def index_path_of(place) -> str:
    path: str = max(path for path in place.paths() if path.startswith(INDEXES))
    return path


def owner_of(place) -> str:
    return str(json.loads(place.get(OWNER))["run_id"])


class Killed(BaseException):
    """Stands for SIGKILL: nothing below the test catches it."""


class HookedStore:
    """A real store that tells before every call; files of an upload are calls of their own."""

    def __init__(self, store: Any, tell: Callable[[str], None]) -> None:
        self._store, self._tell = store, tell
        self.url = store.url

    def __enter__(self) -> "HookedStore":
        self._store.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._store.__exit__(*exc_info)

    def upload(self, source, files, meter, changed=None):
        return [r for e in files for r in self._call("upload", source, [e], meter, changed)]

    def delete(self, paths):
        for path in paths:
            self._call("delete", [path])

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self._call(name, *args)

    def _call(self, name: str, *args: Any) -> Any:
        self._tell(name)
        return getattr(self._store, name)(*args)


def hook(monkeypatch, tell: Callable[[str], None]) -> None:
    def opened(url: str, settings: Any) -> HookedStore:
        return HookedStore(open_store(url, settings), tell)

    monkeypatch.setattr(checkpoint_store, "open_store", opened)
