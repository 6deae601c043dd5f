"""How old the copy is that a store holds while a run trains."""

import time
from datetime import UTC, datetime
from pathlib import Path

from trainjob.storage.output_mirror import OutputMirror
from trainjob.storage.sync_thread import syncing

DEADLINE_S = 20


def mirror(folder: Path, url: str, label: str) -> OutputMirror:
    return OutputMirror(folder, url, None, run_id="run-1", label=label)


def test_a_run_knows_when_each_of_its_copies_was_made_last(folder, tmp_path):
    (folder / "a").write_bytes(b"1")
    (tmp_path / "file").write_bytes(b"in the way")
    good = mirror(folder, str(tmp_path / "place"), "good")
    bad = mirror(folder, str(tmp_path / "file" / "place"), "bad")
    started = datetime.now(UTC)

    with syncing([good, bad], settle_s=0.01, flush_s=1) as sync:
        give_up_at = time.monotonic() + DEADLINE_S
        while "good" not in sync.synced_at and time.monotonic() < give_up_at:
            time.sleep(0.01)  # the pause between two looks at the condition
        first = sync.synced_at["good"]

    assert started < first < sync.synced_at["good"] <= datetime.now(UTC)
    assert "bad" not in sync.synced_at
