"""Logs in a store while ranks still write them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.core.storage.engines import use_engine
from tests.s3_faults import fault_proxy
from trainjob.errors import CorruptData, OutputNotEmpty
from trainjob.storage import s3_transfer
from trainjob.storage.claim import CLAIM
from trainjob.storage.curl import objects
from trainjob.storage.log_mirror import LogMirror

SECRET = "wJalrXUtnFEMI"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "logs" / "attempt-0" / "records").mkdir(parents=True)
    return tmp_path / "logs"


@pytest.fixture
def sync(logs, place) -> LogMirror:
    return mirror(logs, place)


def mirror(logs: Path, place, run_id="run-1", journal=None) -> LogMirror:
    return LogMirror(
        logs, place.url, place.settings, run_id=run_id, secrets=[SECRET], journal=journal
    )


def add(file: Path, text: str) -> None:
    with file.open("a") as opened:
        opened.write(text)


def test_growing_logs_of_all_attempts_and_ranks_are_kept(sync, logs, place):
    add(logs / "attempt-0" / "rank-0.log", "one\n")
    add(logs / "attempt-0" / "launcher.log", "starts\n")
    first = sync.push(is_final=False)
    seen = place.get("attempt-0/rank-0.log")
    add(logs / "attempt-0" / "rank-0.log", "two\n")
    (logs / "attempt-1").mkdir()
    add(logs / "attempt-1" / "rank-11.log", "again\n")

    last = sync.push(is_final=True)

    assert seen == b"one\n"
    assert (first.num_sent, first.num_files, first.size_bytes) == (2, 2, 11)
    assert (last.num_sent, last.num_files, last.size_bytes) == (2, 3, 21)
    assert last.missing == ()
    assert place.get("attempt-0/rank-0.log") == b"one\ntwo\n"
    assert place.get("attempt-1/rank-11.log") == b"again\n"


def test_logs_that_did_not_grow_are_not_sent_again(sync, logs, place, tmp_path):
    add(logs / "attempt-0" / "rank-0.log", "one\n")
    journal = tmp_path / "journal"

    numbers = [
        mirror(logs, place, journal=journal).push(is_final=is_final).num_sent
        for is_final in (False, False, True)
    ]

    assert numbers == [1, 0, 0]


def test_only_the_records_that_tell_of_a_failure_are_kept(sync, logs, place):
    for name in ("begin-0.json", "order.json", "progress-0.jsonl", "error-1.json", "stall.json"):
        (logs / "attempt-0" / "records" / name).write_text("{}")
    (logs / "attempt-0" / "records" / "torchrun").mkdir()
    (logs / "attempt-0" / "records" / "torchrun" / "error-0.json").write_text("{}")
    (logs / "attempt-0" / "records" / "stacks-0.txt").write_bytes(b"x" * (1 << 20))
    (logs / "attempt-0" / "records" / "stacks-1.txt").write_bytes(b"x" * ((1 << 20) + 1))

    report = sync.push(is_final=True)

    assert report.missing == ()
    assert place.paths() == [
        CLAIM,
        "attempt-0/records/error-1.json",
        "attempt-0/records/stacks-0.txt",
        "attempt-0/records/stall.json",
    ]


def test_secrets_are_hidden_at_every_moment(sync, logs, place):
    log, name = logs / "attempt-0" / "rank-0.log", "attempt-0/rank-0.log"
    seen = []
    for part in ("key ", SECRET[:4], SECRET[4:], "\nnext ", SECRET[:5]):
        add(log, part)
        sync.push(is_final=False)
        seen.append(place.get(name))

    report = sync.push(is_final=True)

    assert seen == [b"key ", b"key ", b"key ***", b"key ***\nnext ", b"key ***\nnext "]
    assert place.get(name) == b"key ***\nnext " + SECRET[:5].encode()
    assert (report.num_files, report.missing) == (1, ())


def test_a_secret_between_two_pieces_of_a_large_log_is_hidden(sync, logs, place):
    log = logs / "attempt-0" / "rank-0.log"
    piece = 1 << 20
    log.write_bytes(b"x" * (piece - 5) + SECRET.encode() + b"y" * piece)

    sync.push(is_final=False)

    assert place.get("attempt-0/rank-0.log") == b"x" * (piece - 5) + b"***" + b"y" * piece


@pytest.mark.usefixtures("engine")
def test_a_log_of_several_parts_arrives_whole(s3_place, logs, monkeypatch):
    for module in (s3_transfer, objects):
        monkeypatch.setattr(module, "PART_BYTES", 5 << 20)
    text = b"".join(b"line %d\n" % i for i in range(1 << 20)) + SECRET.encode()
    (logs / "attempt-0" / "rank-0.log").write_bytes(text)

    report = mirror(logs, s3_place).push(is_final=True)

    assert s3_place.get("attempt-0/rank-0.log") == text.replace(SECRET.encode(), b"***")
    head = s3_place.server.client.head_object(
        Bucket=s3_place.bucket, Key=f"{s3_place.prefix}/attempt-0/rank-0.log"
    )
    assert head["ETag"].endswith('-3"')
    assert report.missing == ()


def test_the_logs_of_another_run_are_refused_and_untouched(logs, place):
    add(logs / "attempt-0" / "rank-0.log", "one\n")
    mirror(logs, place).push(is_final=True)
    before = {path: place.get(path) for path in place.paths()}

    with pytest.raises(OutputNotEmpty, match="of the run run-1"):
        mirror(logs, place, "run-2").push(is_final=False)

    assert {path: place.get(path) for path in place.paths()} == before


def test_a_folder_with_files_of_others_is_refused_before_there_is_a_log(sync, place):
    place.put("precious", b"1")

    with pytest.raises(OutputNotEmpty, match="1 files, such as 'precious'"):
        sync.push(is_final=False)

    assert place.paths() == ["precious"]


def test_a_run_that_another_run_overtakes_stops(sync, logs, place):
    add(logs / "attempt-0" / "rank-0.log", "one\n")
    sync.push(is_final=False)
    place.put(CLAIM, json.dumps({"run_id": "run-2", "files": []}).encode())

    with pytest.raises(OutputNotEmpty, match="the run run-2"):
        sync.push(is_final=False)


def test_what_somebody_deletes_in_the_store_is_sent_again(sync, logs, place):
    add(logs / "attempt-0" / "rank-0.log", "one\n")
    sync.push(is_final=False)
    place.delete("attempt-0/rank-0.log")

    assert sync.push(is_final=False).num_sent == 1


def test_at_the_end_every_byte_is_proved(s3, s3_place, logs, monkeypatch):
    use_engine(monkeypatch, "s3fs")  # the other one knows by the ETag what arrived
    add(logs / "attempt-0" / "rank-0.log", "one\n")
    wrong = [True]

    def flip(method: str, path: str):
        return "flip" if wrong[0] and method == "GET" and path.endswith("rank-0.log") else None

    with fault_proxy(s3.port, flip) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        sync = LogMirror(logs, s3_place.url, settings, run_id="r")
        sync.push(is_final=False)
        with pytest.raises(CorruptData, match="other bytes than were sent"):
            sync.push(is_final=True)
        wrong[0] = False
        report = sync.push(is_final=True)

    assert (report.num_sent, report.num_files) == (1, 1)


def test_odd_entries_are_named_and_do_not_keep_the_rest(sync, logs, place):
    add(logs / "attempt-0" / "rank-0.log", "one\n")
    os.mkfifo(logs / "attempt-0" / "pipe")

    report = sync.push(is_final=True)

    assert (report.num_files, report.missing) == (1, ("attempt-0/pipe",))
