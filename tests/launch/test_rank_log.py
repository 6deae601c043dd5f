from pathlib import Path

import pytest

from tests.clock import Clock
from trainjob.launch import rank_log
from trainjob.launch.hidden import hiding, lines_without_secrets
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


@pytest.mark.parametrize("start", range(10, 24))
def test_a_line_that_is_handed_out_in_pieces_is_not_cut_within_a_secret(log, monkeypatch, start):
    monkeypatch.setattr(rank_log, "_MAX_LINE_BYTES", 20)
    monkeypatch.setattr(rank_log, "_CHUNK_BYTES", 30)
    line = b"x" * start + b"key-of-job" + b"y" * (50 - start)
    append(log, line + b"\nend\n")
    tail = LogTail(log)

    with hiding(["key-of-job"]):
        pieces = tail.read()
        while tail.has_more:
            pieces += tail.read()
        shown = lines_without_secrets(pieces)

    assert "".join(shown) == line.decode().replace("key-of-job", "***") + "end"


def test_a_line_in_pieces_whose_end_looks_like_a_secret_is_whole_in_the_end(log, monkeypatch):
    monkeypatch.setattr(rank_log, "_MAX_LINE_BYTES", 20)
    append(log, b"x" * 21 + b"key-of")
    tail = LogTail(log)

    with hiding(["key-of-job"]):
        first, last = tail.read(), tail.read(is_final=True)

    assert (first, last) == (["x" * 21], ["key-of"])


def test_a_state_that_may_end_in_the_half_of_a_secret_waits_for_the_rest(log):
    clock = Clock()
    tail = LogTail(log, clock)

    with hiding(["key-of-job"]):
        assert read_after(tail, clock, log, 0.0, b"\rlogin") == []
        assert read_after(tail, clock, log, 9.0, b"\rlogin key-of") == []
        assert read_after(tail, clock, log, 1.0, b"-job as me") == ["login key-of-job as me"]


@pytest.mark.parametrize("start", range(20, 32))
def test_who_goes_on_close_to_the_end_does_not_begin_within_a_secret(log, monkeypatch, start):
    monkeypatch.setattr(rank_log, "_MAX_BEHIND_BYTES", 50)
    monkeypatch.setattr(rank_log, "_KEPT_BYTES", 40)
    rest = b"x" * start + b"key-of-job" + b"y" * (60 - start)
    append(log, b"z" * 100 + rest)

    with hiding(["key-of-job"]):
        _, line = lines_without_secrets(LogTail(log).read(is_final=True))

    assert set(line) <= set("xy*")
    assert line.endswith("y" * 20)


@pytest.mark.parametrize("start", range(20, 32))
def test_a_last_line_that_is_cut_does_not_begin_within_a_secret(log, monkeypatch, start):
    monkeypatch.setattr(rank_log, "_TAIL_BYTES", 40)
    append(log, b"z" * 100 + b"x" * start + b"key-of-job" + b"y" * (60 - start))

    with hiding(["key-of-job"]):
        (line,) = last_lines(log, 3)

    assert set(line) <= set("xy*")
    assert line.endswith("y" * 20)


def test_a_secret_of_many_lines_is_hidden_in_the_last_lines(log):
    append(log, b"begin {\nkey\n} end\n")

    with hiding(["{\nkey\n}"]):
        assert last_lines(log, 3) == ("begin *** end",)
