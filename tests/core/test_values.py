"""Values as people write them."""

from datetime import timedelta

import pytest

from trainjob.values import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1h", 3600), ("1h30m", 5400), ("2d", 172800), ("0.5m", 30), (" 1H 5M ", 3900)],
)
def test_durations_are_read_with_their_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "60", 60, "1x", "h1", "-1h", None, "1h!", "99999999999h", "9" * 400 + "s"]
)
def test_a_duration_without_a_unit_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="write a duration with its unit"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["90s", "1h30m", "2d", "1m30s", "0.25s", "0s"])
def test_a_written_duration_reads_as_the_same(text: str) -> None:
    duration = parse_duration(text)

    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    ("text", "size"), [("16GiB", 16 * 2**30), ("500 MB", 500 * 10**6), ("1.5kb", 1500), ("7B", 7)]
)
def test_sizes_are_read_with_their_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["16", "GiB", "1 PiB!", ""])
def test_a_size_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write a size with its unit"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1 GiB"), (2**60, "1048576 TiB")],
)
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    assert format_size(size) == text
