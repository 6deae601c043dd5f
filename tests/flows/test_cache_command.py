"""``python -m flows cache``: what is there, what may go, and whether it is still right."""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.hold import release
from trainjob.storage.cache.owner import Owner
from trainjob.storage.cache.snapshot import FileLine, Snapshot
from trainjob.storage.stage import stage_channel


@pytest.fixture
def cached(tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Snapshot]:
    """Two datasets of 1,000 bytes: one that a job uses, and one unused for ten days."""
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    bucket, cache = s3.new_bucket(), Cache(tmp_path / "cache")
    found = {}
    for name in ("used", "old"):
        url = f"s3://{bucket}/{name}/"
        s3.put(bucket, f"{name}/file", os.urandom(1000))
        stage_channel(url, tmp_path / name, s3.settings, label=name, holder=f"run.{name}")
        [found[name]] = [one for one in cache.snapshots() if one.header.url == url]
    release(cache, "run.old")
    ten_days_ago = time.time() - 10 * 24 * 3600
    os.utime(found["old"].root / "used", (ten_days_ago, ten_days_ago))
    return found


def test_ls_shows_what_is_there_and_who_uses_it(cached, tmp_path, capsys) -> None:
    assert main(["cache", "ls"]) == 0

    head, used, old, total = capsys.readouterr().out.splitlines()
    assert re.split("  +", head) == ["DATASET", "FILES", "SIZE", "LAST USED", "URL", "IN USE BY"]
    url, users = cached["used"].header.url, f"run.used (pid {os.getpid()})"
    key = cached["used"].key[:12]
    assert re.split("  +", used) == [key, "1", "1000 B", "just now", url, users]
    url, key = cached["old"].header.url, cached["old"].key[:12]
    assert re.split("  +", old) == [key, "1", "1000 B", "10d ago", url, "-"]
    assert total == f"2 datasets, 2.0 KiB in {tmp_path / 'cache'}"


def test_ls_for_machines_is_one_object(cached, capsys) -> None:
    assert main(["cache", "ls", "--json"]) == 0

    used, old = json.loads(capsys.readouterr().out)["datasets"]
    assert used["key"] == cached["used"].key
    assert used["fingerprint"] == cached["used"].header.fingerprint
    assert used["in_use_by"] == [f"run.used (pid {os.getpid()})"]
    assert old["in_use_by"] == []


def test_what_a_power_cut_left_of_a_dataset_is_shown_and_removed(cached, capsys) -> None:
    (cached["old"].root / "snapshot.json").write_bytes(b"")
    root = cached["old"].root

    main(["cache", "ls"])
    shown = capsys.readouterr().out
    main(["cache", "ls", "--json"])
    broken = json.loads(capsys.readouterr().out)["broken"]
    main(["cache", "prune"])
    pruned = capsys.readouterr().out

    assert "1 dataset that cannot be read; python -m flows cache prune removes" in shown
    assert broken == [str(root)]
    assert f"removed {root.name[:12]}  a copy that cannot be read: " in pruned
    assert not root.exists()


def test_ls_says_that_another_user_has_datasets_there(cached, monkeypatch, capsys) -> None:
    monkeypatch.setattr(Cache, "hidden", lambda _: [cached["old"].root])

    main(["cache", "ls"])

    assert "1 dataset of another user, which this one may not read" in capsys.readouterr().out


@pytest.fixture
def leave(cached: dict[str, Snapshot], tmp_path: Path) -> Callable[[float], Path]:
    """Leave a copy of 10 bytes that broke off so many hours ago."""

    def run(hours_ago: float) -> Path:
        left = tmp_path / "cache" / "incoming" / f"{'0' * 32}-{Owner.nobody()}-{'1' * 32}"
        left.mkdir()
        (left / "half").write_bytes(bytes(10))
        (left / "journal").touch()
        then = time.time() - 3600 * hours_ago
        os.utime(left / "journal", (then, then))
        return left

    return run


def test_ls_tells_what_is_not_finished_since_it_takes_the_disk_too(leave, capsys) -> None:
    left = leave(0)

    main(["cache", "ls"])
    shown = capsys.readouterr().out
    main(["cache", "ls", "--json"])
    unfinished = json.loads(capsys.readouterr().out)["unfinished"]

    assert shown.endswith("\n1 dataset not finished, 10 B; a run that wants it goes on with it\n")
    assert unfinished == [{"path": str(left), "size_bytes": 10}]


@pytest.mark.parametrize(
    ("hours_ago", "words", "is_removed"),
    [
        (1, [], False),
        (25, [], True),
        (1, ["--max-size", "1GiB"], False),
        (1, ["--max-size", "1005B"], True),
        (1, ["--older-than", "2h"], False),
        (1, ["--older-than", "30m"], True),
        (1, ["--all"], True),
    ],
)
def test_prune_leaves_what_broke_off_to_the_run_that_tries_again(
    leave, hours_ago, words, is_removed
) -> None:
    left = leave(hours_ago)

    main(["cache", "prune", *words])

    assert left.exists() != is_removed


def test_ls_of_a_cache_that_is_not_there_makes_none(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))

    assert main(["cache", "ls"]) == 0

    assert capsys.readouterr().out == f"0 datasets, 0 B in {tmp_path / 'cache'}\n"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("words", "is_removed"),
    [
        (["--all"], True),
        (["--older-than", "7d"], True),
        (["--older-than", "30d"], False),
        (["--max-size", "1500B"], True),
        (["--max-size", "1GiB"], False),
        ([], False),
    ],
)
def test_prune_removes_what_is_named_and_nothing_that_is_in_use(
    cached, capsys, words, is_removed
) -> None:
    assert main(["cache", "prune", *words]) == 0

    output = capsys.readouterr().out
    assert cached["old"].root.exists() != is_removed
    assert cached["used"].root.exists()
    assert (cached["old"].header.url in output) == is_removed
    left = "1 dataset, 1 in use" if is_removed else "2 datasets, 1 in use"
    assert output.endswith(f"there: {left}\n")


def test_a_dry_run_of_prune_removes_nothing(cached, capsys) -> None:
    assert main(["cache", "prune", "--all", "--dry-run"]) == 0

    assert capsys.readouterr().out.startswith(f"would remove {cached['old'].key[:12]}")
    assert cached["old"].root.exists()


def test_prune_takes_a_size_or_an_age_with_its_unit(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["cache", "prune", "--max-size", "200"])

    assert "write a size with its unit, such as 16GiB" in capsys.readouterr().err


def test_verify_ends_with_0_if_every_byte_is_right(cached, capsys) -> None:
    assert main(["cache", "verify"]) == 0

    assert capsys.readouterr().out.count("1 file, 1000 B, all as the manifest says") == 2


def flip(snapshot: Snapshot) -> None:
    """Change a bit on the disk, which changes neither size nor time."""
    file = snapshot.data / "file"
    stat = file.stat()
    data = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_verify_ends_with_1_and_throws_away_what_is_not_right(cached, capsys) -> None:
    flip(cached["old"])

    assert main(["cache", "verify"]) == 1

    output = capsys.readouterr().out
    found = "NOT what its manifest says; thrown away, the next run fetches it again"
    assert f"{found}\n  file: other bytes" in output
    assert output.count("all as the manifest says") == 1
    assert not cached["old"].root.exists()


def test_no_run_takes_what_verify_found_wrong_while_another_uses_it(
    cached, s3, tmp_path, capsys
) -> None:
    used = cached["used"]
    flip(used)
    wrong = (tmp_path / "used" / "file").read_bytes()

    assert main(["cache", "verify"]) == 1
    output = capsys.readouterr().out
    while_in_use = (tmp_path / "used" / "file").read_bytes()
    stage_channel(used.header.url, tmp_path / "next", s3.settings, label="next", holder="run.next")

    users = f"run.used (pid {os.getpid()})"
    assert f"NOT what its manifest says; in use by {users}, the next run fetches it" in output
    assert while_in_use == wrong
    assert (tmp_path / "next" / "file").read_bytes() != wrong
    assert (tmp_path / "used" / "file").read_bytes() == wrong


def test_ls_shows_what_verify_found_wrong_and_who_still_uses_it(cached, tmp_path, capsys) -> None:
    flip(cached["used"])
    main(["cache", "verify"])
    capsys.readouterr()

    main(["cache", "ls"])
    _, *rows, total, wrong = capsys.readouterr().out.splitlines()
    main(["cache", "ls", "--json"])
    answer = json.loads(capsys.readouterr().out)

    url, users = cached["used"].header.url, f"run.used (pid {os.getpid()})"
    [used] = [row for row in rows if url in row]
    assert re.split("  +", used)[2:] == ["1000 B", "just now", f"{url} (found wrong)", users]
    assert total.startswith("2 datasets, 2.0 KiB")
    assert wrong.startswith("1 dataset found wrong by verify; left to the runs that use it")
    is_taken_back = {one["url"]: one["is_taken_back"] for one in answer["datasets"]}
    assert is_taken_back == {url: True, cached["old"].header.url: False}
    assert answer["broken"] == []


def test_prune_removes_what_verify_found_wrong_once_nobody_uses_it(cached, capsys) -> None:
    flip(cached["used"])
    main(["cache", "verify"])
    main(["cache", "prune"])
    while_in_use = cached["used"].root.exists()
    for lease in cached["used"].leases():  # of a process of another machine, a week later
        lease.file.unlink()

    main(["cache", "prune"])

    assert while_in_use
    assert not cached["used"].root.exists()
    assert cached["old"].root.exists()


@pytest.mark.parametrize("moment", ["files", "read"])
def test_what_a_run_removes_while_verify_reads_is_not_wrong(
    cached, capsys, monkeypatch, moment
) -> None:
    """Runs make room at any time, and to verify a large cache takes hours."""
    cache, old, listed = Cache.of_machine(), cached["old"], Snapshot.files

    def remove_meanwhile(snapshot: Snapshot) -> list[FileLine]:
        lines = [] if moment == "files" else listed(snapshot)
        if snapshot.key == old.key:
            assert cache.evict(snapshot)
        return lines or listed(snapshot)

    monkeypatch.setattr(Snapshot, "files", remove_meanwhile)

    assert main(["cache", "verify"]) == 0

    output = capsys.readouterr().out
    assert f"{old.header.url}: 1 file, 1000 B, removed meanwhile by another process" in output
    assert output.count("all as the manifest says") == 1


def test_verify_goes_on_behind_a_file_that_the_disk_does_not_give_back(cached, capsys) -> None:
    file = cached["used"].data / "file"
    file.unlink()
    file.symlink_to("/proc/self/mem")  # as a disk with bad sectors: EIO

    assert main(["cache", "verify"]) == 1

    output = capsys.readouterr().out
    assert "NOT what its manifest says; in use by" in output
    assert f"  {file}: Input/output error" in output
    assert output.count("all as the manifest says") == 1


def test_verify_for_machines_names_the_problems(cached, capsys) -> None:
    flip(cached["old"])

    main(["cache", "verify", "--json"])

    answer = json.loads(capsys.readouterr().out)
    assert answer["problems"][cached["old"].key] == ["file: other bytes"]
    assert answer["problems"][cached["used"].key] == []
