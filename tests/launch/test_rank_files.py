"""A rank puts links in the place of files that the worker reads and writes beside it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainjob.launch import stacks
from trainjob.launch.launch import Launch
from trainjob.launch.rank_log import LogTail, last_lines
from trainjob.launch.records import read_records
from trainjob.launch.stacks import take_stacks


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Return a file of the worker's user."""
    file = tmp_path / "credentials"
    file.write_text('{"code": 7}\n')
    return file


def test_a_rank_gets_nothing_read_or_written_by_links_in_its_logs(
    make_launch: Callable[..., Launch], watch: Callable[..., Any], secret: Path
) -> None:
    script = f"""
        import os, pathlib
        log = pathlib.Path(os.readlink("/proc/self/fd/1"))
        log.unlink()
        log.symlink_to("{secret}")
        for name in ("outcome.tmp", "outcome.json", "progress-0.jsonl"):
            (log.parent / "records" / name).symlink_to("{secret}")
    """
    launch = make_launch(script)

    ran = watch(launch)

    assert ran.lines() == []
    assert secret.read_text() == '{"code": 7}\n'
    assert "finished" in (launch.records_dir / "outcome.json").read_text()
    assert not (launch.records_dir / "outcome.json").is_symlink()


@pytest.mark.parametrize("what", ["link", "link to a link", "pipe", "folder"])
def test_what_is_no_file_has_no_lines(what: str, secret: Path, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "rank-0.log"
    log.parent.mkdir()
    if what == "link":
        log.symlink_to(secret)
    elif what == "link to a link":
        (log.parent / "other").symlink_to(secret)
        log.symlink_to("other")
    elif what == "pipe":
        os.mkfifo(log)
    else:
        log.mkdir()

    assert LogTail(log).read(is_final=True) == []
    assert last_lines(log, 10) == ()


def test_records_are_not_read_by_way_of_links(secret: Path, tmp_path: Path) -> None:
    (tmp_path / "exit-0.json").write_text('{"no": "record"}')
    records, elsewhere = tmp_path / "logs" / "records", tmp_path / "logs" / "elsewhere"
    records.mkdir(parents=True)
    (records / "exit-0.json").symlink_to(secret)
    elsewhere.symlink_to(tmp_path)

    assert read_records(records, 1)[0].exit is None
    assert read_records(elsewhere, 1)[0].exit is None


def test_what_no_store_can_take_of_an_error_is_escaped(tmp_path: Path) -> None:
    """Python names the bytes of a file name that are no text by lone surrogates."""
    said = {"type": "ValueError", "message": "bad \udcff", "traceback": "\udcff"}
    counted = {"code": 1, "time_ns": 1, "log_offset": 0}
    (tmp_path / "error-0.json").write_text(json.dumps({**said, **counted}))

    found = read_records(tmp_path, 1)[0].error

    assert found is not None
    assert (found.message, found.traceback) == ("bad \\udcff", "\\udcff")


def test_asking_for_stacks_empties_no_file_but_that_of_the_rank(
    secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "_TIMEOUT_S", 0.0)
    (tmp_path / "stacks-0.txt").symlink_to(secret)
    no_process = 2**22 + 1

    assert take_stacks({0: no_process}, tmp_path) == {}

    assert secret.read_text() == '{"code": 7}\n'
