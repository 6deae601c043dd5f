from pathlib import Path

import pytest

from tests.clock import Clock
from trainjob.launch import rank_log
from trainjob.launch.rank_log import LogTail, last_lines


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "rank-0.log"


def append(log: Path, data: bytes) -> None:
    with log.open("ab") as file:
        file.write(data)


def test_lines_are_handed_out_once_and_whole(log):
    tail = LogTail(log)
    assert tail.read() == []

    append(log, b"one\ntw")
    first = tail.read()
    append(log, b"o\n\nthree\n")
    second = tail.read()

    assert first == ["one"]
    assert second == ["two", "", "three"]
    assert tail.read() == []


def test_a_line_that_was_never_ended_is_handed_out_at_the_end(log):
    append(log, b"one\nlast words")
    tail = LogTail(log)

    assert tail.read() == ["one"]
    assert tail.read(is_final=True) == ["last words"]
    assert tail.read(is_final=True) == []


def test_bytes_that_are_no_text_are_replaced(log):
    append(log, b"caf\xe9 \xff\xfe\n\x00\n")

    assert LogTail(log).read() == ["caf\ufffd \ufffd\ufffd", "\x00"]


def test_a_character_cut_by_the_end_of_a_read_is_whole(log):
    tail = LogTail(log)
    append(log, "é".encode()[:1])
    assert tail.read() == []

    append(log, "é\n".encode()[1:])

    assert tail.read() == ["é"]


def test_a_progress_bar_arrives_as_its_last_state(log):
    append(log, b"\r 10%\r 50%\r100%\nwindows line\r\n")

    assert LogTail(log).read() == ["100%", "windows line"]


def read_after(tail: LogTail, clock: Clock, log: Path, seconds: float, data: bytes) -> list[str]:
    clock.now += seconds
    append(log, data)
    return tail.read()


def test_a_progress_bar_that_goes_on_for_long_is_seen_now_and_then(log):
    clock = Clock()
    tail = LogTail(log, clock)

    seen = [read_after(tail, clock, log, 1.0, f"\r{percent}%".encode()) for percent in range(1, 13)]

    assert [(second, lines) for second, lines in enumerate(seen) if lines] == [
        (5, ["6%"]),
        (10, ["11%"]),
    ]


def test_a_progress_bar_that_stands_still_is_seen_once(log):
    clock = Clock()
    tail = LogTail(log, clock)
    tail.read()

    seen = [read_after(tail, clock, log, 5.0, data) for data in (b"50%\r", b"", b"", b"")]

    assert seen == [[], ["50%"], [], []]


def test_the_end_of_a_progress_bar_is_seen_once(log):
    clock = Clock()
    tail = LogTail(log, clock)

    seen = [
        read_after(tail, clock, log, 5.0, data)
        for data in (b"\r50%", b"\r100%", b"\n", b"next\n", b"\r50%", b"\r99%\n", b"99%\n")
    ]

    assert seen == [[], ["100%"], [], ["next"], [], ["99%"], ["99%"]]
    append(log, b"\r1%")
    clock.now += 5
    assert tail.read() == []
    clock.now += 5
    assert tail.read(is_final=True) == ["1%"]
    assert tail.read(is_final=True) == []


def test_a_line_that_is_rewritten_without_end_does_not_fill_the_memory(log, monkeypatch):
    monkeypatch.setattr(rank_log, "_MAX_LINE_BYTES", 1000)
    tail = LogTail(log, Clock())

    for i in range(1000):
        append(log, b"\rstep %d" % i)
        assert tail.read() == []

    assert tail.read(is_final=True) == ["step 999"]


def test_windows_line_ends_that_arrive_in_two_parts_are_no_rewriting(log):
    clock = Clock()
    tail = LogTail(log, clock)

    assert read_after(tail, clock, log, 1.0, b"one\r") == []
    assert read_after(tail, clock, log, 1.0, b"\ntwo\r\n") == ["one", "two"]


def test_a_line_without_end_is_handed_out_in_pieces(log):
    append(log, b"x" * (rank_log._MAX_LINE_BYTES + 1))

    assert [len(line) for line in LogTail(log).read()] == [rank_log._MAX_LINE_BYTES + 1]


def test_one_read_is_bounded_and_says_that_there_is_more(log):
    append(log, b"0123456789\n" * 10**6)
    tail = LogTail(log)

    first = tail.read(is_final=True)

    assert tail.has_more
    assert len(first) <= rank_log._CHUNK_BYTES // 11
    rest = [*tail.read(is_final=True), *tail.read(is_final=True)]
    assert not tail.has_more
    assert [*first, *rest] == ["0123456789"] * 10**6


def test_who_falls_far_behind_goes_on_close_to_the_end_and_says_so(log, monkeypatch):
    monkeypatch.setattr(rank_log, "_MAX_BEHIND_BYTES", 1000)
    monkeypatch.setattr(rank_log, "_KEPT_BYTES", 25)
    tail = LogTail(log)
    append(log, b"start\nnever en")
    assert tail.read() == ["start"]

    append(log, b"d" * 2000 + b"\n" + b"0123456789\n" * 3)
    notice, *lines = tail.read()

    size = log.stat().st_size
    assert lines == ["0123456789"] * 2
    assert notice == (
        f"[trainjob: {size - 22 - 6:,} bytes of output are left out here; {log} has them]"
    )


def test_last_lines_are_those_before_an_offset(log):
    append(log, b"one\ntwo\nthree\nTraceback")

    assert last_lines(log, 2, end=14) == ("two", "three")
    assert last_lines(log, 2) == ("three", "Traceback")
    assert last_lines(log, 9, end=0) == ()


def test_last_lines_of_a_huge_file_are_read_from_its_end(log):
    append(log, b"0123456789\n" * 10**6)

    assert last_lines(log, 3) == ("0123456789",) * 3


def test_last_lines_are_cut(log):
    append(log, b"x" * 10**6)

    (line,) = last_lines(log, 20)

    assert len(line) < 1100


def test_a_missing_log_has_no_lines(log):
    assert last_lines(log, 20) == ()
